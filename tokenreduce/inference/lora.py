"""Checkpoints that hold adapters alone (LoRA): which model they were trained on, and both as one.

What `task=train peft=lora` exports, and any other folder that PEFT has written.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenreduce.errors import BadOption
from tokenreduce.files import parse_json
from tokenreduce.inference.spec import ModelSpec

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class Base:
    """The model under some adapters: a folder or a hub id, and its commit there, where known."""

    name: str
    revision: str | None = None


def holds_adapters(folder: Path) -> bool:
    """Whether a folder has adapters and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(source: str, model: ModelSpec) -> Base | None:
    """The model under the adapters in `source`; None where that holds a whole one.

    Where the adapters name a folder that is not there (any more), `+model.base=...` names another.

    Raises:
        ValueError: a broken file, or no such model; no weights in safetensors; or code from the
            hub is allowed, of which the base model's revision is not pinned.
    """
    folder = Path(source)
    if not holds_adapters(folder):
        return None
    if not (folder / WEIGHTS).is_file():
        raise BadOption(f"model.id={source} has {CONFIG}, but no {WEIGHTS}: save it again")
    if model.trust_remote_code:
        raise BadOption(
            f"model.trust_remote_code=true is of no use for the adapters in {source}: no code of "
            "the model under them is run; merge them into it, and give that"
        )
    try:
        said = parse_json((folder / CONFIG).read_bytes())
        named, trained_on = said["base_model_name_or_path"], said.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadOption(f"{folder / CONFIG} is broken ({error!r})") from None
    base = str(model.base or named or "")
    path = Path(base).expanduser()
    if (path / "config.json").is_file():
        return Base(str(path))
    if not base or path.is_absolute() or base.startswith((".", "~")) or path.is_dir():
        raise BadOption(
            f"model.id={source} holds adapters of the model {base!r}, which has no config.json "
            "here: name that model with +model.base=path (or a hub id)"
        )
    revision = model.revision or trained_on
    return Base(base, None if revision is None else str(revision))


def merged(model: Any, folder: str) -> Any:
    """`model` with the adapters of `folder` added to its weights: a plain model again.

    Raises:
        ValueError: peft is not installed, or the adapters are not those of this model.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise BadOption(
            f'model.id={folder} holds adapters, which need peft: pip install "tokenreduce[train]"'
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads renamed attributes
        warnings.filterwarnings("error", "Found missing adapter keys")
        return _fitting(lambda: PeftModel.from_pretrained(model, folder).merge_and_unload(), folder)


def _fitting(read: Callable[[], T], folder: str) -> T:
    """What `read` returns; what PEFT says of adapters that do not fit is put in one line."""
    try:
        return read()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, UserWarning) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadOption(
            f"the adapters in {folder} do not fit the model that they name ({reason}): name the "
            "right one with +model.base=path (or a hub id)"
        ) from error
