"""A recipe next to a model's checkpoint: a small JSON file, written by `save`, read by `read`.

The file names the strategy and the scheduler as the registries know them, with their options, and
the model that they were made for. The parameters of a learned strategy lie next to it, in a
safetensors file whose digest it tells. Nothing in either is code.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

import tokenreduce
from tokenreduce.adapter import Adapter, adapters, unwrap
from tokenreduce.errors import BadOption, Missing
from tokenreduce.files import atomic, folder_locked, parse_json
from tokenreduce.recipe import Recipe
from tokenreduce.registry import short

FILE = "tokenreduce.json"
WEIGHTS = "tokenreduce.safetensors"
NEW_WEIGHTS = f"{WEIGHTS}*.new"
"""Their names until the file that tells of them is there: a kill in between leaves both usable."""
TRIES = 10
"""Of a save that other processes disturb, on a file system without locks."""
FORMAT = 2
"""Raised whenever an older version could misread the file; a file has the lowest that fits it."""

PARTS = ("strategy", "scheduler", "adapter", "positions", "logits", "seed")
"""What every file says of a recipe."""


@runtime_checkable
class Weighted(Protocol):
    """A strategy with parameters, which lie in a file of their own."""

    def save_weights(self, path: str | os.PathLike[str]) -> Path:
        """Writes them."""

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Reads them, once `begin` has built the modules."""


def save(recipe: Recipe, model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Writes `tokenreduce.json` into `directory`, which is made if it is not there.

    The parameters of a learned strategy go to `tokenreduce.safetensors` next to it. Several
    processes and threads may save into one folder: what it holds is always one whole save, in the
    end that of the last.

    Args:
        recipe: with its adapter and its position rule.
        model: that it is for; its family and depth are written down.
        directory: the folder.

    Returns:
        the path of `tokenreduce.json`.

    Raises:
        ValueError: as `Recipe.to_dict` (the parts could not be made again), or a recipe of a plain
            vision encoder, which has no adapter.
        OSError: the folder cannot be written; a file that was there before is as it was.
    """
    adapter = recipe.adapter
    if not isinstance(adapter, Adapter):
        raise BadOption("a reduction of a plain vision encoder has no language model to go with")
    written = replace(recipe, scheduler=recipe.schedule).to_dict()
    content: dict[str, Any] = {
        "format": 1,
        "tokenreduce": tokenreduce.__version__,
        **{name: written[name] for name in PARTS},
        "model": _facts(model, adapter),
    }
    learned = recipe.strategy if isinstance(recipe.strategy, Weighted) else None
    if learned is not None and "weights" in content["strategy"]["options"]:
        content["strategy"]["options"]["weights"] = None  # where they once came from: they go along
    if recipe.min_tokens:  # which a reader of format 1 would leave out
        content |= {"format": FORMAT, "min_tokens": written["min_tokens"]}
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_locked(folder, writes=True):
        for _ in range(TRIES):
            if _written(folder, content, learned):
                break
    return folder / FILE


def _written(folder: Path, content: dict[str, Any], learned: Weighted | None) -> bool:
    """Writes both files; whether they are those of one save, if not of this one of a later."""
    path, weights = folder / FILE, folder / WEIGHTS
    draft = folder / f"{WEIGHTS}.{os.getpid()}-{os.urandom(4).hex()}.new"
    if learned is not None:
        learned.save_weights(draft)
        content = {**content, "weights": {"file": WEIGHTS, "sha256": _digest(draft)}}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    try:
        with atomic(path) as new:
            new.write_text(text, encoding="utf-8")
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    # from here on the new file counts, whose weights `load` finds under either name
    try:
        if learned is not None:
            os.replace(draft, weights)
        else:
            weights.unlink(missing_ok=True)  # of a learned strategy that was saved here before
        for left in (*folder.glob(NEW_WEIGHTS), *folder.glob(f"{FILE}.*.part")):
            left.unlink(missing_ok=True)  # by saves that broke off
        mine = path.read_text(encoding="utf-8") == text
        return not mine or learned is None or _digest(weights) == content["weights"]["sha256"]
    except FileNotFoundError:  # taken away by a save on another machine
        return False


def read(model: nn.Module, directory: str | os.PathLike[str]) -> Recipe:
    """The recipe that was saved in `directory`, fit for the model.

    Raises:
        FileNotFoundError: the folder holds no such file, or not the weights that it tells of.
        ValueError: as `tokenreduce.load`.
    """
    path = Path(directory) / FILE
    with folder_locked(path.parent):
        content = _read(path)
        try:
            data = {key: value for key, value in content.items() if key != "weights"}
            recipe = Recipe.parse(data)
            adapter: Adapter = adapters.build(content["adapter"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadOption(f"{path} cannot be re-applied: {error}") from error
        _check(path, content["model"], model, adapter)
        if isinstance(recipe.strategy, Weighted):
            weights = _saved_weights(path, content)
            recipe.strategy.initialize(adapter.decoder(unwrap(model)), content["seed"])
            recipe.strategy.load_weights(weights)
    return replace(recipe, adapter=adapter)


def _saved_weights(path: Path, content: dict[str, Any]) -> Path:
    """The file of the parameters that were saved with a strategy."""
    said = content.get("weights")
    if not isinstance(said, dict) or said.get("file") != WEIGHTS:
        raise BadOption(f"{path} is broken (weights is {said!r}): save the reduction again")
    found = [path.parent / WEIGHTS, *sorted(path.parent.glob(NEW_WEIGHTS))]
    found = [file for file in found if file.is_file()]
    if not found:
        raise Missing(
            f"there is no {WEIGHTS} in {path.parent}, with the parameters of "
            f"{content['strategy']['name']!r}: copy it there too, or save the reduction again"
        )
    weights = next((file for file in found if _digest(file) == said.get("sha256")), None)
    if weights is None:
        raise BadOption(
            f"{found[0]} is not the file that was saved with {FILE}: save the reduction again"
        )
    return weights


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(model: nn.Module, adapter: Adapter) -> dict[str, Any]:
    """What a reduction must find again in the model that it is loaded onto."""
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
SEEDS = range(-(2**63), 2**64)
"""What torch takes."""


def _read(path: Path) -> dict[str, Any]:
    """The content of the file, with every entry that this version reads."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise Missing(
            f"there is no {FILE} in {path.parent}: save one with reduction.save(directory)"
        ) from None
    try:
        content = parse_json(text)
        version = content["format"]
        newer = version > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise BadOption(f"{path} is broken ({error}): save the reduction again") from error
    if newer:
        raise BadOption(
            f"{path} has format {version}, written by tokenreduce "
            f"{content.get('tokenreduce', '?')}; this is tokenreduce {tokenreduce.__version__}, "
            f"which reads up to format {FORMAT}: install a newer version"
        )
    for name, kind in _ENTRIES.items():
        entry = content
        for key in name.split("."):
            entry = entry.get(key) if isinstance(entry, dict) else None
        fits = isinstance(entry, kind) and not isinstance(entry, bool)
        if not fits or (name == "seed" and entry not in SEEDS):
            raise BadOption(
                f"{path} is broken ({name} is {short(entry)}): save the reduction again"
            )
    return content  # type: ignore[no-any-return]


def _check(path: Path, saved: dict[str, Any], model: nn.Module, adapter: Adapter) -> None:
    """Refuses a model of another family or depth."""
    try:
        found = _facts(model, adapter)
    except (AttributeError, ValueError):
        found = {"family": type(model).__name__, "depth": 0}
    if found != saved:
        raise BadOption(
            f"{path} was saved for a {saved['family']} model of {saved['depth']} layers, but this "
            f"is a {found['family']} model of {found['depth']}: reduce it with tokenreduce.reduce()"
        )
