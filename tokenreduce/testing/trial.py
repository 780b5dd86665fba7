"""One strategy under one schedule on one tiny model: what it does, measured once, for every law.

Shapes: b samples, l sequence, t generated tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tokenreduce.engine.call import cache_of
from tokenreduce.scheduler import Scheduler, Stop
from tokenreduce.schedulers.explicit import Explicit
from tokenreduce.strategy import Positions, Strategy
from tokenreduce.testing.batches import Batch, Side, batch
from tokenreduce.testing.choices import own
from tokenreduce.testing.models import FAMILIES, IMAGE, VIDEO, Family
from tokenreduce.testing.oracle import decoder_of, embedded
from tokenreduce.tokens import Plan, Tokens

STEPS = 4
"""Tokens that are generated."""


@cache
def shared_model(family: str, attention: str) -> Any:
    """The tiny model of a family, built once per process; laws leave it as it was."""
    return FAMILIES[family].model(attention)


@dataclass(frozen=True)
class Stops(Scheduler):
    """Stops as they were recorded, whatever the depth."""

    recorded: tuple[Stop, ...]

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """These stops."""
        return self.recorded


@dataclass
class Replay(Strategy):
    """Gives back recorded plans: the same choice in another run of the same tokens."""

    plans: Mapping[int, Plan]
    stops: tuple[Stop, ...]

    def plan(self, tokens: Tokens, budget: Any) -> Plan:
        """The plan that was recorded at this layer."""
        return self.plans[tokens.layer]

    def scheduler(self) -> Scheduler:
        """The stops that were recorded."""
        return Stops(self.stops)


@dataclass(frozen=True)
class Outcome:
    """A run of a model, and what its reduction recorded.

    Attributes:
        batch: what the model was given; after decoding, the generated tokens as well.
        logits: (b, l, words) of a forward pass, or (b, t, words) of the generated steps.
        lengths: tokens that each layer's attention was given in the prompt's pass.
        cache: kind of the KV cache, and of the keys per layer how many there are.
    """

    batch: Batch
    logits: Tensor
    kept: dict[int, list[Tensor]]
    plans: dict[int, Plan]
    report: Any
    lengths: list[int] = field(default_factory=list)
    cache: tuple[type, list[int]] | None = None

    @property
    def merges(self) -> bool:
        """Whether kept tokens contain others; hiding the dropped ones is then no reference."""
        return any(plan.merges for plan in self.plans.values())


@dataclass
class Trial:
    """A strategy, a scheduler, a tiny model and an attention kind; runs are remembered.

    `images` are the pictures of each sample of its batches.
    """

    strategy: Strategy
    scheduler: Scheduler
    family: Family
    attention: str = "sdpa"
    images: tuple[int, ...] = (1, 0, 2)
    memory: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.strategy = own(self.strategy)

    def __str__(self) -> str:
        return f"{self.strategy} under {self.scheduler} on {self.family} ({self.attention})"

    @property
    def model(self) -> Any:
        """The tiny model, shared between trials."""
        return shared_model(self.family.name, self.attention)

    @property
    def rules(self) -> tuple[Positions, ...]:
        """The position rules that the family's adapter defines."""
        import tokenreduce

        defined = tokenreduce.adapters[self.family.adapter].positions
        return tuple(rule for rule in ("keep", "compact") if rule in defined)

    def reduce(self, **options: Any) -> Any:
        """The reduction on the tiny model."""
        import tokenreduce

        strategy = options.pop("strategy", self.strategy)
        scheduler = options.pop("scheduler", self.scheduler)
        model = options.pop("model", self.model)
        return tokenreduce.reduce(model, strategy, scheduler, **options)

    def batch(self, side: Side = "left", images: tuple[int, ...] | None = None) -> Batch:
        """A ragged batch of the family, with the trial's pictures per sample unless said."""
        return batch(self.family, self.images if images is None else images, side)

    def plain(self, side: Side = "left") -> Tensor:
        """(b, l, words) logits of the untouched model."""
        return self._once(("plain", side), lambda: self._plain(side))  # type: ignore[no-any-return]

    def _plain(self, side: Side) -> Tensor:
        with torch.no_grad():
            return self.batch(side).run(self.model, use_cache=False).logits  # type: ignore[no-any-return]

    def embedded(self, given: Batch) -> Tensor:
        """(b, l, d) the input of layer 0."""
        return given.inputs["inputs_embeds"] if given.bare else embedded(self.model, given.inputs)

    def forward(self, positions: Positions = "keep", side: Side = "right") -> Outcome:
        """The reduced model on a ragged batch, without a cache."""
        return self._once(  # type: ignore[no-any-return]
            ("forward", positions, side), lambda: self._forward(positions, side)
        )

    def _forward(self, positions: Positions, side: Side) -> Outcome:
        given = self.batch(side)
        with self.reduce(positions=positions) as reduction, _attended(self.model) as lengths:
            with torch.no_grad():
                logits = given.run(self.model, reduction, use_cache=False).logits
            return Outcome(
                given, logits, reduction.kept, reduction.plans, reduction.report, lengths
            )

    def generated(self, positions: Positions = "keep") -> Outcome:
        """The reduced model generating from a left-padded batch, with its cache."""
        return self._once(("generated", positions), lambda: self._generated(positions))  # type: ignore[no-any-return]

    def _generated(self, positions: Positions) -> Outcome:
        given = self.batch("left")
        with self.reduce(positions=positions) as reduction:
            with given.shown(reduction):
                out = generate(self.model, given)
            kept, plans, report = reduction.kept, reduction.plans, reduction.report
        tokens = out.sequences[:, -STEPS:]
        cache = cache_of(out)
        stored = [layer.keys.shape[-2] for layer in cache.layers]
        return Outcome(
            given.then(self.model, tokens[:, :-1]),
            torch.stack(out.logits, dim=1),
            kept,
            plans,
            report,
            cache=(type(cache), stored),
        )

    def replay(self, outcome: Outcome, positions: Positions) -> Tensor:
        """(b, t, words) the generated steps again, in one pass without a cache, same plans."""
        given = outcome.batch
        again = Replay(outcome.plans, self.stops)
        with (
            torch.no_grad(),
            self.reduce(strategy=again, scheduler=None, positions=positions) as reduction,
        ):
            # generate() counts positions over real tokens, and hands them to the model
            counted = {} if self.family.own_positions else {"position_ids": given.positions()}
            out = given.run(self.model, reduction, use_cache=False, **counted)
        return out.logits[:, -STEPS:]  # type: ignore[no-any-return]

    @property
    def stops(self) -> tuple[Stop, ...]:
        """Where the strategy is asked."""
        depth = len(decoder_of(self.model).layers)
        return self.scheduler.stops(depth) if self.strategy.reduces else ()

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


def generate(model: Any, given: Batch, **options: Any) -> Any:
    """Greedy generation of a few tokens, with the logits of every step."""
    if not given.bare:
        options["suppress_tokens"] = [IMAGE, VIDEO]  # a repeated pass would take it for a picture
    with torch.no_grad():
        return model.generate(
            **given.inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )


def small(name: str) -> Scheduler:
    """The registered scheduler `name`, as it fits the tiny models' depth."""
    import tokenreduce

    return tokenreduce.schedulers.build(name, **_SMALL.get(name, {}))  # type: ignore[no-any-return]


_SMALL: dict[str, dict[str, Any]] = {
    "explicit": {"layers": (0, 2, 4), "keeps": (0.75, 0.5, 0.25)},
    "single": {"layer": 2, "keep": 0.3},
}
"""Options where a scheduler's defaults are for deep models; `explicit` also covers layer 0."""


def everything(stops: tuple[Stop, ...]) -> Scheduler:
    """The same stops, which keep every token."""
    layers = tuple(stop.layer for stop in stops)
    return Explicit(layers, (1.0,) * len(layers)) if layers else Explicit((1,), (1.0,))


@contextmanager
def _attended(model: Any) -> Iterator[list[int]]:
    """Collects how many tokens each layer's attention is given."""
    lengths: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        lengths.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    layers = decoder_of(model).layers
    handles = [x.self_attn.register_forward_pre_hook(note, with_kwargs=True) for x in layers]
    try:
        yield lengths
    finally:
        for handle in handles:
            handle.remove()
