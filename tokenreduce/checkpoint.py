"""A reduction beside a model's checkpoint: a small JSON file, written by `save`, read by `load`.

The file names the strategy and the scheduler as the registries know them, with their options, and
the model that they were made for. Nothing in it is code.
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import tokenreduce
from tokenreduce import plugins
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.registry import Registry
from tokenreduce.scheduler import Scheduler, schedulers
from tokenreduce.strategy import strategies

if TYPE_CHECKING:
    from tokenreduce.reduction import Reduction

FILE = "tokenreduce.json"
FORMAT = 1
"""Raised whenever an older version could misread the file."""


def save(reduction: Reduction, directory: str | os.PathLike[str]) -> Path:
    """Writes `tokenreduce.json` into `directory`, which is made if it is not there.

    Returns:
        the path of the file.

    Raises:
        ValueError: a strategy, scheduler or adapter that is not registered, or options that JSON
            cannot hold: nobody could make them again.
        OSError: the folder cannot be written; a file that was there before is as it was.
    """
    content = {
        "format": FORMAT,
        "tokenreduce": tokenreduce.__version__,
        "strategy": _described(reduction.strategy, strategies),
        "scheduler": _described(reduction.scheduler, schedulers),
        "adapter": _name(reduction.adapter, adapters),
        "positions": reduction.positions,
        "logits": reduction.logits,
        "seed": reduction.seed,
        "model": _facts(reduction.model, reduction.adapter),
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    draft = path.with_suffix(".json.part")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(draft, path)  # never half a file
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    return path


def load(model: nn.Module, directory: str | os.PathLike[str]) -> Reduction:
    """Applies the reduction that was saved in `directory` to `model`, as `reduce()` does.

    Raises:
        FileNotFoundError: the folder holds no such file.
        ValueError: a broken or newer file, a name that nobody has registered, or a model of
            another family or depth than the reduction was made for.
    """
    from tokenreduce.reduction import reduce

    plugins.load()
    path = Path(directory) / FILE
    content = _read(path)
    try:
        strategy = strategies.build(content["strategy"]["name"], **content["strategy"]["options"])
        scheduler = schedulers.build(
            content["scheduler"]["name"], **content["scheduler"]["options"]
        )
        adapter: Adapter = adapters.build(content["adapter"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be re-applied: {error}") from error
    _check(path, content["model"], model, adapter)
    return reduce(
        model,
        strategy,
        scheduler,
        adapter=adapter,
        positions=content["positions"],
        logits=content["logits"],
        seed=content["seed"],
    )


def _described(entry: object, registry: Registry[Any]) -> dict[str, Any]:
    """The name and the options with which a registry makes `entry` again."""
    name = _name(entry, registry)
    known = inspect.signature(type(entry)).parameters
    try:
        options = {option: _plain(getattr(entry, option)) for option in known}
        options = json.loads(json.dumps(options, allow_nan=False))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"the options of {registry.kind} {name!r} cannot be saved ({error}): keep every "
            "option in an attribute of its name, as plain numbers, strings, lists or None"
        ) from error
    return {"name": name, "options": options}


def _plain(value: Any) -> Any:
    """An option as JSON can hold it; a scheduler inside another by its name and options."""
    if not isinstance(value, Scheduler):
        return value
    inner = _described(value, schedulers)
    return {"name": inner["name"], **inner["options"]}


def _name(entry: object, registry: Registry[Any]) -> str:
    try:
        return registry.name_of(entry)
    except KeyError:
        kind = type(entry)
        plural = f"{registry.kind[:-1]}ies" if registry.kind.endswith("y") else f"{registry.kind}s"
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} is not a registered {registry.kind}, so that "
            "a saved file could not name it: register the class with "
            f"@tokenreduce.{plural}.register(name)"
        ) from None


def _facts(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """What a reduction must find again in the model that it is loaded onto."""
    from tokenreduce.reduction import unwrap

    core: Any = unwrap(model)
    decoder: Any = adapter.decoder(core)
    family = getattr(getattr(core, "config", None), "model_type", type(core).__name__)
    return {"family": family, "depth": len(decoder.layers)}


_ENTRIES: dict[str, type] = {
    "strategy.name": str,
    "strategy.options": dict,
    "scheduler.name": str,
    "scheduler.options": dict,
    "adapter": str,
    "positions": str,
    "logits": str,
    "seed": int,
    "model.family": str,
    "model.depth": int,
}


def _read(path: Path) -> dict[str, Any]:
    """The content of the file, with every entry that this version reads."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no {FILE} in {path.parent}: save one with reduction.save(directory)"
        ) from None
    try:
        content = json.loads(text)
        version = content["format"]
        newer = version > FORMAT
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error}): save the reduction again") from error
    if newer:
        raise ValueError(
            f"{path} has format {version}, written by tokenreduce "
            f"{content.get('tokenreduce', '?')}; this is tokenreduce {tokenreduce.__version__}, "
            f"which reads up to format {FORMAT}: install a newer version"
        )
    for name, kind in _ENTRIES.items():
        entry = content
        for key in name.split("."):
            entry = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(entry, kind):
            raise ValueError(f"{path} is broken ({name} is {entry!r}): save the reduction again")
    return content  # type: ignore[no-any-return]


def _check(path: Path, saved: dict[str, Any], model: nn.Module, adapter: Adapter) -> None:
    """Refuses a model of another family or depth."""
    try:
        found = _facts(model, adapter)
    except (AttributeError, ValueError):
        found = {"family": type(model).__name__, "depth": 0}
    if found != saved:
        raise ValueError(
            f"{path} was saved for a {saved['family']} model of {saved['depth']} layers, but this "
            f"is a {found['family']} model of {found['depth']}: reduce it with tokenreduce.reduce()"
        )
