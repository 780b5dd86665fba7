"""`Recipe`: with what to reduce, as one object that can be written down, read, named and compared.

    recipe = Recipe.parse({"strategy": "fastv", "scheduler": {"keep": 0.25}})
    with tr.reduce(model, recipe): ...

It is what a checkpoint's file, the settings of other programs, the conditions of an evaluation and
the candidates of a benchmark hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal, get_args

from tokenreduce import plugins
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.checks import integer, one_of
from tokenreduce.errors import BadOption, Incompatible, did_you_mean, short
from tokenreduce.presets import spelled
from tokenreduce.scheduler import Scheduler, schedulers
from tokenreduce.strategy import Positions, Strategy, strategies

Logits = Literal["full", "text"]
FILED = ("format", "tokenreduce", "model")
"""What else a checkpoint's file holds: of the file, and of the model that it lies next to."""


@dataclass(frozen=True)
class Recipe:
    """With what to reduce a model; `tokenreduce.reduce(model, recipe)` does it.

    Two recipes are equal when their parts are. Learned strategies are equal to themselves alone:
    their parameters are no part of what `to_dict` and `key` say.

    Attributes:
        strategy: which tokens stay.
        scheduler: where and how many; None is the strategy's own.
        positions: the rule for position ids; None is the strategy's, where the family defines it.
        logits: of which positions (`"full"` or `"text"`).
        seed: for strategies that draw.
        min_tokens: samples with fewer visual tokens are left as they are.
        adapter: how the family is read, a name or an instance; None finds it.

    Raises:
        TypeError: a name where an instance is expected; `parse` reads names.
        ValueError: an option of another kind, or `min_tokens` with a strategy that acts on pixels.
    """

    strategy: Strategy
    scheduler: Scheduler | None = None
    positions: Positions | None = None
    logits: Logits = "full"
    seed: int = 0
    min_tokens: int = 0
    adapter: str | Adapter | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, Any] = {"strategy": Strategy, "scheduler": Scheduler | None}
        for part, kind in kinds.items():
            if not isinstance(getattr(self, part), kind):
                raise Incompatible(
                    f"the {part} of a recipe is an instance, not {short(getattr(self, part))}: "
                    "names are read by Recipe.parse({'strategy': ..., 'scheduler': ...})"
                )
        if self.positions is not None:
            one_of(self.positions, get_args(Positions), "positions")
        one_of(self.logits, get_args(Logits), "logits")
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral):
            raise BadOption(f"seed must be a whole number, not {short(self.seed)}")
        integer(self.min_tokens, "min_tokens", least=0)
        if self.min_tokens and self.strategy.acts_on_pixels:
            raise BadOption(
                f"min_tokens={self.min_tokens} is decided in the model, and "
                f"strategy={self.name} acts before it: leave one of them out"
            )

    @classmethod
    def parse(cls, data: Recipe | Strategy | str | Mapping[str, Any]) -> Recipe:
        """The recipe that is meant by a name, a strategy, a mapping of parts, or a recipe itself.

        Args:
            data: of a mapping, `strategy` and `scheduler` are names, instances, or mappings of
                `name` and options (`Registry.parse`); options of a scheduler without a name change
                those of the strategy's own. `to_dict()` is such a mapping, and so is the content
                of a checkpoint's file, but for the parameters of a learned strategy.

        Raises:
            KeyError: a name that is not registered.
            TypeError: an option that the strategy or the scheduler does not have, or other data.
            ValueError: an option of another kind, an unknown part, or a mapping without a strategy.
        """
        plugins.load()
        if isinstance(data, Recipe):
            return data
        if isinstance(data, str | Strategy):
            return cls(_strategy(data))
        if not isinstance(data, Mapping):
            raise Incompatible(
                "a strategy is a registered name or an instance, or part of a Recipe, not "
                f"{short(data)} (known names: {', '.join(strategies)})"
            )
        parts = _parts({key: value for key, value in data.items() if key not in FILED})
        strategy = _strategy(parts.pop("strategy", {}))
        scheduler = parse_scheduler(parts.pop("scheduler", None), strategy)
        if isinstance(parts.get("adapter"), str):
            adapters[parts["adapter"]]  # an unknown name is refused now
        return cls(strategy, scheduler, **parts)

    @property
    def name(self) -> str:
        """The strategy's name; of one that is not registered, its class's."""
        return _name(self.strategy)

    @property
    def schedule(self) -> Scheduler:
        """The scheduler, or the strategy's own."""
        return self.strategy.scheduler() if self.scheduler is None else self.scheduler

    def in_model(self) -> Recipe:
        """What is left to do inside the model once `Strategy.prepare` has had the pictures."""
        if not self.strategy.acts_on_pixels:
            return self
        return replace(self, strategy=strategies.build("none"), scheduler=self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, of which `parse` makes an equal recipe.

        Raises:
            ValueError: a strategy, scheduler or adapter that is not registered, or an option that
                JSON cannot hold.
        """
        data: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        data["strategy"] = strategies.to_dict(self.strategy)
        if self.scheduler is not None:
            data["scheduler"] = schedulers.to_dict(self.scheduler)
        if isinstance(self.adapter, Adapter):
            data["adapter"] = adapters.to_dict(self.adapter)["name"]
        return data | {"seed": int(self.seed), "min_tokens": int(self.min_tokens)}

    def key(self) -> str:
        """A short name for files: equal for equal recipes, and for one that spells its schedule.

        Raises:
            ValueError: as `to_dict`.
        """
        data = replace(self, scheduler=self.schedule).to_dict()
        text = json.dumps(_canonical(data), sort_keys=True)
        name = re.sub(r"[^\w.-]+", "_", f"{data['strategy']['name']}-{data['scheduler']['name']}")
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def describe(self) -> str:
        """One line for people: names, and what is not as usual."""
        parts = [_described(self.strategy), _described(self.schedule)]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                said = _name(value) if isinstance(value, Adapter) else value
                parts.append(f"{field.name}={said}")
        return ", ".join(parts)


def parse_scheduler(data: Any, strategy: Strategy) -> Scheduler | None:
    """The scheduler that is meant by an instance, a name or a mapping; None for the strategy's own.

    A mapping without a name changes options of the strategy's own.
    """
    if data is None or data == {}:
        return None
    if isinstance(data, Scheduler):
        return data
    if isinstance(data, Mapping) and "name" not in data:
        data = schedulers.node(strategy.scheduler()) | dict(data)
    made: Scheduler = schedulers.parse(data)
    return made


def _strategy(data: Any) -> Strategy:
    made: Strategy = data if isinstance(data, Strategy) else strategies.parse(data)
    return made


def _parts(data: dict[str, Any]) -> dict[str, Any]:
    """The parts of a recipe; refuses others, and parameters, which are in a file of their own."""
    if "weights" in data:
        raise BadOption(
            "these are the contents of a file whose parameters lie next to it: "
            "tokenreduce.load(model, folder) reads both"
        )
    known = [field.name for field in fields(Recipe)]
    for key in data:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise BadOption(f"a recipe has no {key!r}{hint} (known: {', '.join(known)})")
    return data


def _name(entry: Any) -> str:
    for registry in (strategies, schedulers, adapters):
        if type(entry) in registry.values():
            return registry.name_of(entry)
    return type(entry).__name__


def _described(entry: Strategy | Scheduler) -> str:
    """A name with the options that are not as usual; what is not registered as it shows itself."""
    registry: Any = strategies if isinstance(entry, Strategy) else schedulers
    try:
        changed = registry.to_dict(entry, defaults=False)
    except ValueError:
        return repr(entry)
    options = [f"{key}={spelled(value)}" for key, value in changed["options"].items()]
    return " ".join([changed["name"], *options])


def _canonical(data: Any) -> Any:
    """Equal numbers alike: 1.0 and 1 are equal, and JSON writes them in two ways."""
    if isinstance(data, Mapping):
        return {key: _canonical(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_canonical(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data
