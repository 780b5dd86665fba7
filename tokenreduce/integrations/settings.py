"""A reduction as plain data: what other programs hand over in a file or in their own arguments.

    {"strategy": "fastv", "scheduler": {"keep": 0.25}, "positions": "keep", "seed": 0}

A strategy or a scheduler is a registered name, or a mapping of its `name` and options. Options of a
scheduler without a name change those of the strategy's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tokenreduce.checkpoint import FILE
from tokenreduce.errors import BadOption, Missing, did_you_mean
from tokenreduce.files import parse_json
from tokenreduce.recipe import Recipe
from tokenreduce.reduction import Reduction, load, reduce

PARTS = ("strategy", "scheduler", "positions", "seed", "min_tokens")
"""What other programs may say of a recipe: logits are their models' own business."""


@dataclass(frozen=True)
class Settings:
    """What to reduce a model with: a recipe, or the folder of a saved reduction."""

    recipe: Recipe | None = None
    folder: Path | None = None

    def apply(self, model: nn.Module) -> Reduction:
        """Reduces `model` from now on.

        Raises:
            ValueError: a model that cannot be reduced so, or as `tokenreduce.load`.
        """
        if self.recipe is None:
            assert self.folder is not None  # one of them is given
            return load(model, self.folder)
        return reduce(model, self.recipe)


def read_settings(given: str | Mapping[str, Any]) -> Settings:
    """The settings in a JSON or YAML file, in a folder of `reduction.save`, or as written.

    Args:
        given: a path; or the settings themselves, a mapping or JSON text in braces.

    Raises:
        FileNotFoundError: no such file.
        KeyError, TypeError: a name that is not registered, an option that is not there.
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
    try:
        return Settings(Recipe.parse(content))
    except BadOption as error:
        raise BadOption(f"{where}: {error}") from None


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
