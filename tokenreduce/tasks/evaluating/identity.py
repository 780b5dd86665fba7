"""Where the answers of a model lie, and what tells them from those of another."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import tokenreduce as tr
from tokenreduce.evaluation.items import Item, fingerprint
from tokenreduce.tasks.loading import Loaded

EDGE = 2**16  # bytes of a weights file that are read at its beginning and at its end


def root_of(config: DictConfig, output: Path) -> Path:
    """The folder that all runs of a comparison share: of the whole sweep, where there is one."""
    if config.task.folder is not None:
        return Path(str(config.task.folder)).expanduser()
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).absolute()
    return output


def folder_of(root: Path, loaded: Loaded) -> Path:
    """The part of that folder which belongs to a model."""
    source = Path(loaded.source)
    name = "tiny" if loaded.embedded else source.name if source.is_dir() else loaded.source
    return root / re.sub(r"[^\w.-]+", "--", str(name))


def identity(config: DictConfig, loaded: Loaded, items: Sequence[Item], starts: Any) -> Any:
    """What decides the answers, and so must be the same for all that are compared."""
    model = tr.unwrap(loaded.model)
    return {
        "model": "embedded" if loaded.embedded else loaded.source,
        "class": type(model).__name__,
        "weights": weights_of(loaded),
        "data": str(config.data.name),
        "questions": fingerprint(items),
        "number": len(items),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(config.attention),
        "max_new_tokens": int(config.max_new_tokens),
        "match": str(config.task.match),
        "starts": starts,
    }


def weights_of(loaded: Loaded) -> str:
    """The revision of a model from the hub; a digest of the files of a local one.

    Of every weights file its size, its first and its last 64 KiB are read: enough to tell two
    trainings apart, without reading gigabytes.
    """
    folder = Path(loaded.source)
    if not folder.is_dir():
        return str(getattr(loaded.model.config, "_commit_hash", None))
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            digest.update(file.read(EDGE))
            file.seek(max(size - EDGE, 0))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]
