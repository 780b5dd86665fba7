"""`reduce()`: puts a strategy and a scheduler to work on a live model, and takes them off again.

This is the only code with state: hook handles, training progress, and the record of the latest
prompt. Everything else travels with one forward pass or lives with its KV cache.
Shapes: b samples, l sequence.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tokenreduce import plugins
from tokenreduce.adapter import Adapter, adapter_for, adapters
from tokenreduce.cost import shape_of
from tokenreduce.encoder import EncoderReduction
from tokenreduce.engine.contract import check_layers, check_model
from tokenreduce.engine.hooks import owners_of, parameters
from tokenreduce.engine.inside import Inside
from tokenreduce.engine.sequence import Sequence
from tokenreduce.engine.setup import Setup
from tokenreduce.engine.wiring import Wiring
from tokenreduce.errors import ReductionWarning
from tokenreduce.fit import Logits, check_fit, check_options, instance
from tokenreduce.geometry import Picture
from tokenreduce.learned import LearnedStrategy, complaint
from tokenreduce.report import Record, Report, make_report
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.strategy import Positions, Strategy, TowerStrategy, strategies
from tokenreduce.tokens import Plan
from tokenreduce.tower import Part, encoder_tower


class Reduction:
    """A strategy and a scheduler at work on one model. A context manager; made by `reduce()`."""

    def __init__(
        self,
        model: nn.Module,
        strategy: Strategy,
        scheduler: Scheduler,
        adapter: Adapter,
        positions: Positions,
        logits: Logits,
        seed: int,
        min_tokens: int = 0,
    ) -> None:
        self.model, self.strategy, self.scheduler = model, strategy, scheduler
        self.adapter, self.positions, self.logits, self.seed = adapter, positions, logits, seed
        self.min_tokens = min_tokens
        core = unwrap(model)
        self.decoder = adapter.decoder(core)
        names = parameters(self.decoder.layers[0])
        self._setup = Setup(
            adapter, self.decoder, strategy, {}, positions, seed, names, min_tokens=min_tokens
        )
        self._record: Record | None = None
        self._applied = False
        self._blocks = 0  # open `with` blocks: the outermost takes the hooks off
        self.progress = 1.0
        if isinstance(strategy, LearnedStrategy):
            strategy.begin(self.decoder, seed)
        self._inside: EncoderReduction | None = None
        self._wiring: Wiring = self._apply()

    def _apply(self) -> Wiring:
        """Puts every hook on, or none: whatever goes wrong, the model stays as it was."""
        core = unwrap(self.model)
        roots = [self.model] if core is self.model else [self.model, core]
        base = self.adapter.base(core)
        wiring = Wiring(roots, base, self._setup, self.logits == "text", self._remember, self)
        strategy = self.strategy
        if isinstance(strategy, TowerStrategy) and strategy.tower is not None:
            try:
                self._inside = self._shorten_tower(base, strategy)
            except BaseException:
                wiring.remove()
                raise
        return wiring

    # -- what a caller reads -------------------------------------------------------------------

    @property
    def stops(self) -> tuple[Stop, ...]:
        """Where tokens are reduced, and to which share of the original."""
        return tuple(self._setup.stops.values())

    @property
    def progress(self) -> float:
        """How much of training is done, 0 to 1; schedulers may depend on it."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        depth = len(self.decoder.layers)
        stops = self.scheduler.stops(depth, value) if self.strategy.reduces else ()
        if self._setup.inside is not None:  # how many groups there are, the tower says
            stops = (Stop(0, 1.0),) if self._setup.grouped else ()
        for stop in stops:
            if not 0 <= stop.layer < depth:
                raise ValueError(
                    f"layer {stop.layer} is outside a decoder of {depth} layers: "
                    f"use 0 to {depth - 1}"
                )
        self._progress = value
        self._setup.stops = {stop.layer: stop for stop in stops}

    @property
    def report(self) -> Report:
        """Tokens per layer, FLOPs and cache bytes of the latest prompt."""
        # of the kind that keys and values have: quantised weights are bytes, which these never are
        value = next(p for p in self.decoder.parameters() if p.is_floating_point())
        shape = shape_of(self.decoder.config)
        record, stops = self._latest(), dict(self._setup.stops)
        if self._setup.grouped and any(record.counts):
            share = sum(record.budgets.get(0, record.counts)) / sum(record.counts)
            stops = {0: Stop(0, share)}
        needs = None if self._setup.grouped else self.strategy.needs
        report = make_report(record, stops, shape, value.element_size(), self.min_tokens, needs)
        inside = self._inside
        return report if inside is None or not inside.ran else replace(report, tower=inside.report)

    @property
    def tower(self) -> EncoderReduction | None:
        """What is merged inside the vision tower: plans, groups, sizes; None where nothing is."""
        return self._inside

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """`{layer: [indices per sample]}` of the latest prompt, ascending, counted at layer 0."""
        return self._latest().indices()

    @property
    def plans(self) -> dict[int, Plan]:
        """The plan of every stop of the latest prompt."""
        return self._latest().plans

    @property
    def places(self) -> list[list[Picture]]:
        """Per sample, the pictures of the latest prompt: where each visual token stands."""
        return self._latest().pictures

    def _latest(self) -> Record:
        if self._record is None:
            raise RuntimeError("no prompt has passed through the model under this reduction")
        return self._record

    # -- what a caller does --------------------------------------------------------------------

    @contextmanager
    def visual(self, mask: Tensor, pictures: list[Picture] | None = None) -> Iterator[Reduction]:
        """Marks the visual positions of what the model is given inside the block.

        Args:
            mask: (b, l) bool over the full sequence, cached tokens included; tokens behind it
                (generated ones) are text. Beams may repeat its rows.
            pictures: geometry of the marked tokens in reading order; a square per sample if None.

        Raises:
            TypeError: a mask that is not a 2-D bool tensor.
        """
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.dtype.is_floating_point:
            raise TypeError("the visual mask must be a bool tensor of shape (samples, sequence)")
        with self._wiring.marked(mask.bool(), pictures or []):
            yield self

    @contextmanager
    def labels(self, labels: Tensor) -> Iterator[Reduction]:
        """Says which tokens are answers, to training that computes the loss outside the model.

        Passes inside the block that are given no labels choose their tokens as if they had these:
        the tokens right before the answers ask, and no choice depends on an answer. Nothing else
        changes; the model returns no loss.

        Args:
            labels: (b, l) ids, -100 where nothing is to be predicted.

        Raises:
            TypeError: labels that are not a 2-D tensor of whole numbers.
        """
        if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.dtype.is_floating_point:
            raise TypeError("labels must be a tensor of ids of shape (samples, sequence)")
        with self._wiring.labelled(labels):
            yield self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The strategy's own parameters, for an optimiser; none unless it is a learned one."""
        if isinstance(self.strategy, LearnedStrategy):
            yield from self.strategy.parameters()

    def remove(self) -> None:
        """Takes every hook off: the model is as it was. Warns when nothing was ever reduced."""
        asked = any(stop.keep < 1 for stop in self._setup.stops.values())
        if self._inside is not None:
            self._inside.remove()
            assert self._setup.inside is not None  # set with it
            self._setup.inside.remove()
        if self._wiring.remove() and asked and not self._applied:
            warnings.warn(
                "the reduction was removed without having reduced anything: no forward pass had "
                "enough visual tokens (mark them with `reduction.visual(mask)` for a bare decoder)",
                ReductionWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Reduction:
        if not self._wiring.handles:  # removed before: a second block applies it again
            self._applied = False
            self._wiring = self._apply()
        self._blocks += 1
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._applied = True  # the error says enough
        self._blocks -= 1
        if self._blocks:
            return
        if self._inside is not None:
            self._inside.__exit__(kind, error, trace)
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Reduction:
        return self

    def __repr__(self) -> str:
        state = "" if self._wiring.handles else ", removed"
        return (
            f"Reduction({self.strategy}, {self.scheduler}, positions={self.positions!r}, "
            f"stops={[(s.layer, s.keep) for s in self.stops]}{state})"
        )

    def save(self, directory: Any) -> Any:
        """Writes the reduction beside a checkpoint, to be re-applied by `tokenreduce.load`."""
        from tokenreduce.checkpoint import save

        return save(self, directory)

    def _shorten_tower(self, base: Part, strategy: TowerStrategy) -> EncoderReduction:
        """Merges inside the vision tower, and at layer 0 where its groups come once."""
        tower = self.adapter.tower(base)
        assert tower is not None  # `reduce` asked the adapter
        module = self.adapter.tower_module(base)
        within = Inside(module, tower, strategy.tower == "spread")
        try:
            found = EncoderReduction(module, tower, strategy, None, self.seed, within.passed)
        except ValueError:
            within.remove()
            raise
        self._setup.inside = within
        self.progress = self._progress
        return found

    def _remember(self, seq: Sequence, cache: Any) -> None:
        spared = self._setup.spared(seq.counts)
        self._applied = self._applied or bool(seq.steps) or any(spared)  # or was asked not to
        if seq.steps and (said := complaint(self.strategy, self.model.training)):
            warnings.warn(said, ReductionWarning, stacklevel=2)
        blank = (0,) * seq.batch
        record = Record(
            seq.counts or blank,
            seq.texts,
            {i: counts for i, (_, _, counts) in seq.kept.items()},
            {i: (index, valid) for i, (index, valid, _) in seq.kept.items()},
            dict(seq.plans),
            seq.pictures or [[] for _ in seq.texts],
            None if cache is None else weakref.ref(cache),
            tuple(n * left for n, left in zip(seq.counts, spared, strict=True)) or blank,
        )
        earlier = self._record
        if seq.start and earlier is not None and earlier.of(cache):
            record = earlier.join(record)
        elif not seq.counts and (seq.start or (earlier is not None and earlier.in_use())):
            return  # text behind a cache that was filled elsewhere, or beside one of pictures
        self._record = record


def reduce(
    model: nn.Module,
    strategy: str | Strategy,
    scheduler: str | Scheduler | None = None,
    *,
    adapter: str | Adapter | None = None,
    positions: Positions | None = None,
    logits: Logits = "full",
    seed: int = 0,
    min_tokens: int = 0,
) -> Reduction:
    """Reduces the visual tokens of `model` from now on, until `remove()` or the end of the block.

    The same call serves inference and training. The model's weights, config, forward and cache
    class stay what they were; hooks do the work.

    Args:
        model: a transformers vision-language model or causal LM, also wrapped by PEFT or DDP; or a
            plain vision encoder (CLIP, SigLIP, ViT, DeiT, timm's VisionTransformer), for which an
            `EncoderReduction` is returned.
        strategy: which tokens stay: a registered name, or an instance.
        scheduler: where and how many; None means the strategy's own.
        adapter: how the family is read; None finds it by `config.model_type`.
        positions: `"keep"` the original position ids or `"compact"` them after every stop; None
            means the strategy's own rule where the family defines it, else `"keep"`.
        logits: `"full"` returns logits for every position; `"text"` only for the positions that
            text needs (text tokens, and the token before each), left-padded, without the cost of
            the others; the loss is the same. Where that would leave nothing out they are full.
            Training without labels is refused with `"text"`: a loss outside the model would
            compare other positions.
        seed: for strategies that draw.
        min_tokens: samples with fewer visual tokens in a pass are left as they are, and the
            report says so: below some number choosing costs more than it saves.

    Raises:
        KeyError: an unknown strategy, scheduler or adapter name.
        TypeError: a strategy whose evidence the adapter cannot measure, or an object of another
            kind.
        ContractError: a model or a release of transformers that is not what the engine relies on.
        ValueError: an unsupported family, a layer beyond the model, positions that are not
            defined for the family, or a model that is already reduced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"reduce() takes a model that is loaded, not {model!r}: load it first, such as with "
            "transformers' AutoModelForImageTextToText.from_pretrained(...)"
        )
    plugins.load()  # names and families that installed packages add
    chosen = instance(strategy, strategies, Strategy)
    schedule = (
        chosen.scheduler() if scheduler is None else instance(scheduler, schedulers, Scheduler)
    )
    tower = encoder_tower(unwrap(model)) if adapter is None else None
    if tower is not None:
        own = None if scheduler is None else schedule
        if positions is not None or logits != "full" or min_tokens:
            raise ValueError(
                "positions, logits and min_tokens are of a language model, which a plain vision "
                "encoder does not have"
            )
        inside: Any = EncoderReduction(unwrap(model), tower, chosen, own, seed)
        return inside  # type: ignore[no-any-return]
    reader = _reader(unwrap(model), adapter)
    check_fit(chosen, reader, unwrap(model))
    rule = check_options(chosen, reader, positions, logits, min_tokens)
    return Reduction(model, chosen, schedule, reader, rule, logits, seed, min_tokens)


def remove(model: nn.Module) -> bool:
    """Takes off whatever reduction is on `model`, also where nobody holds it any more.

    Args:
        model: the model that `reduce()` was given, or any module that has it inside.

    Returns:
        Whether there was one.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"remove() takes the model that reduce() was given, not {model!r}")
    owners = {id(owner): owner for part in model.modules() for owner in owners_of(part)}
    for owner in owners.values():
        owner.remove()
    return bool(owners)


def _reader(model: nn.Module, adapter: str | Adapter | None) -> Adapter:
    """The adapter that reads `model`, once everything that the engine relies on was checked."""
    check_layers(model)
    if adapter is None:
        reader = adapter_for(model)
    else:
        reader = instance(adapter, adapters, Adapter)
        if reason := reader.unfit(model):
            raise ValueError(
                f"the {type(reader).__name__} adapter cannot read this model: {reason}"
            )
    check_model(reader, model)
    return reader


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT and data-parallel wrappers."""
    found: Any = model
    while True:
        if hasattr(found, "get_base_model"):
            found = found.get_base_model()
        elif isinstance(getattr(found, "module", None), nn.Module) and (
            "module" in getattr(found, "_modules", ()) or not hasattr(found, "config")
        ):  # DDP, DeepSpeed's engine
            found = found.module
        else:
            return found  # type: ignore[no-any-return]
