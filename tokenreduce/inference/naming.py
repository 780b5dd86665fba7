"""Names of weights in checkpoints that are written here: those that every reader knows.

transformers 5 writes back the names that it has read. A model that was never read gets those of its
modules, and its CLIP or SigLIP tower none with `vision_model.`, which published checkpoints have:
transformers 5.5 and vLLM 0.32 look for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenreduce.files import atomic, parse_json, write_json

TOWERS = ("clip_vision_model", "siglip_vision_model")
OWN, PUBLISHED = "vision_tower.", "vision_tower.vision_model."
WRAPPERS = ("model", "language_model", "vision_model")
"""Modules around others, which a name has or lacks by the release that wrote it."""


def name_as_published(folder: Path, config: Any) -> None:
    """Names the weights of a CLIP or SigLIP tower in `folder` as published checkpoints do.

    Args:
        folder: with safetensors files and perhaps their index.
        config: of the model; one with another tower is left as it is.
    """
    if getattr(getattr(config, "vision_config", None), "model_type", None) not in TOWERS:
        return
    for path in folder.glob("*.safetensors"):
        rename(path, _published)
    for path in folder.glob("*.safetensors.index.json"):
        index = parse_json(path.read_bytes())
        index["weight_map"] = {_published(k): v for k, v in index["weight_map"].items()}
        write_json(path, index, indent=2)


def bare(name: str) -> str:
    """The name of a weight without what releases of transformers add, leave out or move.

    `language_model.model.norm.weight` and `model.language_model.norm.weight` are one weight.
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def rename(path: Path, named: Callable[[str], str]) -> None:
    """Gives the tensors of a safetensors file other names; their bytes are copied as they are."""
    with path.open("rb") as file:
        table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        other = {k if k == "__metadata__" else named(k): v for k, v in table.items()}
        if other.keys() == table.keys():
            return
        head = json.dumps(other).encode()
        head += b" " * (-len(head) % 8)  # tensors begin at a multiple of eight bytes
        with atomic(path) as draft, draft.open("wb") as copy:
            copy.write(len(head).to_bytes(8, "little") + head)
            shutil.copyfileobj(file, copy)


def _published(name: str) -> str:
    before, found, after = name.rpartition(OWN)
    own = found and before in ("", "model.") and not name.startswith(before + PUBLISHED)
    return f"{before}{PUBLISHED}{after}" if own else name
