"""A reduction as plain data: what other programs hand over in a file or in their own arguments.

    {"strategy": "fastv", "scheduler": {"keep": 0.25}, "positions": "keep", "seed": 0}

A strategy or a scheduler is a registered name, or a mapping of its `name` and options. Options of a
scheduler without a name change those of the strategy's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tokenreduce import plugins
from tokenreduce.checkpoint import FILE
from tokenreduce.errors import BadOption, Missing, did_you_mean
from tokenreduce.files import parse_json
from tokenreduce.reduction import Reduction, load, reduce
from tokenreduce.scheduler import Scheduler, schedulers
from tokenreduce.strategy import Strategy, strategies

PARTS = ("strategy", "scheduler", "positions", "seed", "min_tokens")
"""What settings may hold."""


@dataclass(frozen=True)
class Settings:
    """What to reduce a model with.

    Attributes:
        strategy: its name and options.
        scheduler: likewise; without a name, options of the strategy's own schedule.
        positions: `"keep"`, `"compact"`, or None for the strategy's rule.
        seed: for strategies that draw.
        min_tokens: samples with fewer visual tokens are left as they are.
        folder: of a saved reduction (`reduction.save`), in place of all others.
    """

    strategy: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    positions: Any = None
    seed: int = 0
    min_tokens: int = 0
    folder: Path | None = None

    def apply(self, model: nn.Module) -> Reduction:
        """Reduces `model` from now on.

        Raises:
            KeyError: a name that nobody has registered.
            TypeError: an option that the strategy or the scheduler does not have.
            ValueError: a value that one of them refuses, or a model that cannot be reduced so.
        """
        plugins.load()
        if self.folder is not None:
            return load(model, self.folder)
        options = dict(self.strategy)
        strategy: Strategy = strategies.build(str(options.pop("name")), **options)
        schedule = _schedule(strategy, dict(self.scheduler))
        return reduce(
            model,
            strategy,
            schedule,
            positions=self.positions,
            seed=self.seed,
            min_tokens=self.min_tokens,
        )


def read_settings(given: str | Mapping[str, Any]) -> Settings:
    """The settings in a JSON or YAML file, in a folder of `reduction.save`, or as written.

    Args:
        given: a path; or the settings themselves, a mapping or JSON text in braces.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is there cannot be read, or holds something else.
    """
    if isinstance(given, Mapping):
        return _settings(given, "the reduction's settings")
    text = given.strip()
    if text.startswith("{"):
        return _settings(_json(text, "reduction_config"), "reduction_config")
    path = Path(text).expanduser()
    if path.is_dir() or path.name == FILE:
        return Settings(folder=path if path.is_dir() else path.parent)
    if not path.is_file():
        raise Missing(
            f"reduction_config={text} is no file: give a JSON or YAML file, the folder of a "
            'saved reduction, or JSON such as {"strategy": "fastv"}'
        )
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise BadOption(f"{path}: a reduction's settings are read from .json, .yaml or .yml")
    read = _json if path.suffix == ".json" else _yaml
    return _settings(read(path.read_text(encoding="utf-8"), str(path)), str(path))


def flat_settings(given: Mapping[str, Any]) -> Settings:
    """The settings in dotted names, as on the command line: `{"scheduler.keep": 0.25, ...}`.

    Lists may be text in brackets (`"[8, 16]"`).
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        part, dot, option = key.partition(".")
        value = _listed(value)
        name = part if part in PARTS else key
        if dot and part in ("strategy", "scheduler"):
            found.setdefault(part, {})[option] = value
        elif part in ("strategy", "scheduler"):
            found.setdefault(part, {})["name"] = value
        else:
            found[name] = value
    return _settings(found, "the reduction's settings")


def _settings(content: Any, where: str) -> Settings:
    if not isinstance(content, Mapping):
        raise BadOption(f"{where} must hold a mapping such as {{strategy: fastv}}, not {content!r}")
    for key in content:
        if key not in PARTS:
            hint = did_you_mean(str(key), PARTS)
            raise BadOption(f"{where}: no {key!r}{hint} (known: {', '.join(PARTS)})")
    strategy = _node(content.get("strategy"), f"{where}: strategy")
    if not isinstance(strategy.get("name"), str):
        raise BadOption(f"{where}: no strategy is named (known names: {', '.join(strategies)})")
    seed, least = content.get("seed", 0), content.get("min_tokens", 0)
    for name, value in (("seed", seed), ("min_tokens", least)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadOption(f"{where}: {name} must be a whole number, not {value!r}")
    scheduler = _node(content.get("scheduler"), f"{where}: scheduler")
    return Settings(strategy, scheduler, content.get("positions"), seed, least)


def _node(given: Any, where: str) -> dict[str, Any]:
    """A name and options, from a name or a mapping; nothing from None."""
    if given is None:
        return {}
    if isinstance(given, str):
        return {"name": given}
    if not isinstance(given, Mapping):
        raise BadOption(f"{where} must be a name, or a mapping of name and options, not {given!r}")
    return {str(key): tuple(x) if isinstance(x, list) else x for key, x in given.items()}


def _schedule(strategy: Strategy, options: dict[str, Any]) -> Scheduler | None:
    """The schedule that is named; the strategy's own, with changes, where none is."""
    if not options:
        return None
    if "name" not in options:
        own = strategy.scheduler()
        known = inspect.signature(type(own)).parameters
        options = {option: getattr(own, option) for option in known} | options
        options["name"] = schedulers.name_of(own)
    schedule: Scheduler = schedulers.build(str(options.pop("name")), **options)
    return schedule


def _listed(value: Any) -> Any:
    """A list that is written as text, in brackets; any other value as it is."""
    if isinstance(value, str) and value.startswith("["):
        return _json(value, "a list")
    return value


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise BadOption(f"{where} is no valid JSON ({error}): {' '.join(text.split())}") from None


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadOption(f"{where} is no valid YAML: {' '.join(str(error).split())}") from None
