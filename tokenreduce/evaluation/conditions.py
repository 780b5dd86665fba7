"""What the same questions are answered under: the full model, a reduction, a harmless change.

Everything that a comparison needs is planned with the reduction that was asked for: the unreduced
model of the same run, the baselines under the same schedule and position rule, and the
changes of the input that set the scale.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import tokenreduce as tr
from tokenreduce import plugins
from tokenreduce.adapter import adapter_for
from tokenreduce.data.items import Item
from tokenreduce.errors import BadOption
from tokenreduce.evaluation.perturbation import perturbations
from tokenreduce.inference.loaded import Loaded
from tokenreduce.registry import Registry
from tokenreduce.strategy import Positions

BASELINES = ("random", "stride", "pooling", "downsample")
"""Reducers that read nothing of the model or the question."""
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """One way to answer the questions.

    Attributes:
        strategy: name and options; None is the full model.
        scheduler: name and options.
        positions: `"keep"` or `"compact"`; None is the strategy's own rule.
        seed: of the strategy.
        change: of the questions, by name; None leaves them as they are.
        min_tokens: samples with fewer visual tokens are left as they are.
    """

    strategy: Options | None = None
    scheduler: Options | None = None
    positions: Positions | None = None
    seed: int = 0
    change: str | None = None
    min_tokens: int = 0

    @property
    def key(self) -> str:
        """A name for files: what it is, and a digest of every option."""
        parts = [self.change] if self.strategy is None else [self.strategy["name"], self.schedule]
        name = re.sub(r"[^\w.-]+", "_", "-".join(str(part) for part in parts if part) or "full")
        text = json.dumps(asdict(self), sort_keys=True, default=list)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        if self.strategy is None:
            return self.change or "full model"
        return f"{self.strategy['name']}, {self.schedule}"

    @property
    def schedule(self) -> str | None:
        """The scheduler's name."""
        return None if self.scheduler is None else str(self.scheduler["name"])

    @property
    def on_pictures(self) -> bool:
        """Whether pictures are made smaller before the processor."""
        return self.strategy is not None and self.build()[0].site == "pictures"

    def build(self) -> tuple[tr.Strategy, tr.Scheduler]:
        """The strategy and the scheduler, new ones."""
        plugins.load()
        return _built(tr.strategies, self.strategy), _built(tr.schedulers, self.scheduler)

    def reduction(self, loaded: Loaded) -> Callable[[], Any]:
        """A context in which the model answers under this condition; the full one does nothing."""
        if self.strategy is None:
            return nullcontext
        strategy, scheduler = self.build()
        chosen: Any = "none" if strategy.site == "pictures" else strategy
        return lambda: tr.reduce(
            loaded.model,
            chosen,
            scheduler,
            positions=self.positions,
            seed=self.seed,
            min_tokens=self.min_tokens,
        )

    def asked(self, items: Sequence[Item]) -> list[Item]:
        """The questions as this condition puts them; those that it cannot change are left out."""
        if self.change is None:
            return list(items)
        changed = (perturbations[self.change](item) for item in items)
        return [item for item in changed if item is not None]


FULL = Condition()


def spelled_out(asked: Condition, loaded: Loaded) -> Condition:
    """A reduction as a condition with its position rule spelled out; `FULL` for one of nothing.

    Options that are the defaults of their class are left out, so that the same condition has the
    same key however it was written.

    Raises:
        ValueError: `min_tokens` with a strategy that acts before the model.
    """
    plugins.load()
    assert asked.strategy is not None  # it names a reduction
    assert asked.scheduler is not None  # and its schedule
    strategy = _spoken(tr.strategies, asked.strategy)
    made = replace(asked, strategy=strategy, scheduler=_spoken(tr.schedulers, asked.scheduler))
    own = made.build()[0]
    if own.site == "pictures" and made.min_tokens:
        raise BadOption(
            f"min_tokens={made.min_tokens} is decided in the model, and "
            f"strategy={strategy['name']} acts before it: leave one of them out"
        )
    if not own.reduces and own.site != "pictures":
        return FULL
    if made.positions is None:
        defined = adapter_for(tr.unwrap(loaded.model)).positions
        made = replace(made, positions=own.positions if own.positions in defined else "keep")
    return made


def plan(
    tested: Condition, baselines: Sequence[str], seeds: int, changes: Sequence[str]
) -> list[Condition]:
    """What is run for the reduction that was asked for, each once, itself first.

    What cannot be done with the model is then refused before anything else is computed. A smaller
    picture is not among the baselines here: its share is solved for when the others' cost is
    known.
    """
    rows = [tested, FULL, *(Condition(change=name) for name in changes)]
    if tested != FULL:
        for name in baselines:
            draws = {"random": seeds, "downsample": 0}.get(name, 1)
            rows += [replace(tested, strategy={"name": name}, seed=seed) for seed in range(draws)]
    return list({row.key: row for row in rows}.values())


def draws_beside(tested: Condition, planned: Sequence[Condition]) -> str | None:
    """What to say where the tested reduction is a baseline, and so a part of its row."""
    if tested.strategy is None or tested.strategy["name"] not in BASELINES:
        return None
    name = tested.strategy["name"]
    seeds = [one.seed for one in planned if replace(one, seed=tested.seed) == tested]
    if len(seeds) == 1:
        return f"{name}: is in the table as a baseline"
    return (
        f"{name}, seed {tested.seed}: one of the {len(seeds)} draws of the baseline {name} "
        f"(seeds {', '.join(map(str, sorted(seeds)))}), which the table has as one row"
    )


def smaller_pictures(keep: float) -> Condition:
    """The baseline that acts on pictures, at a share of their visual tokens."""
    scheduler = {"name": "single", "layer": 0, "keep": keep}
    return Condition({"name": "downsample"}, scheduler, "keep")


def _built(registry: Registry[Any], options: Options | None) -> Any:
    """What a name and its options stand for."""
    named = dict(options or {})
    return registry.build(str(named.pop("name", None)), **named)


def _spoken(registry: Any, options: Options) -> dict[str, Any]:
    """A name with its options, without those that are defaults of the class it names."""
    usual = inspect.signature(registry[options["name"]]).parameters
    return {
        key: value
        for key, value in options.items()
        if key == "name" or key not in usual or value != usual[key].default
    }
