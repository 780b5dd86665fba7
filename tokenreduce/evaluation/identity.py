"""Where the answers of a model lie, and what tells them from those of another."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenreduce as tr
from tokenreduce.data.items import Item
from tokenreduce.evaluation.asking import Protocol
from tokenreduce.evaluation.question_sets import fingerprint
from tokenreduce.files import skim, skim_tensors
from tokenreduce.inference.loaded import Loaded
from tokenreduce.inference.naming import bare

WEIGHTS = "*.safetensors"
DECIDE = (
    *(
        "config.json",
        "adapter_config.json",
        "generation_config.json",
        "*processor_config.json",
    ),
    *("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "*.py"),
)
"""Files next to the weights that the answers depend on: sizes, words, pictures, template."""


def folder_of(root: Path, loaded: Loaded) -> Path:
    """The part of that folder which belongs to a model.

    A local checkpoint's has a digest of where it lies after its name: many are called alike.
    """
    name = "tiny" if loaded.embedded else _absolute(loaded.source)
    if os.path.isabs(name):
        name = f"{Path(name).name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return root / re.sub(r"[^\w.-]+", "--", name)


def identity(
    loaded: Loaded, items: Sequence[Item], how: Protocol, data: str, attention: str
) -> dict[str, Any]:
    """What decides the answers, and so must be the same for all that are compared.

    Batch and device are not in it: answers agree to rounding under any, to the bit under one.

    Args:
        loaded: the model.
        items: the questions.
        how: they are put.
        data: the name of where the questions came from.
        attention: the implementation that was asked for.
    """
    model = tr.unwrap(loaded.model)
    return {
        "model": "embedded" if loaded.embedded else _absolute(loaded.source),
        "class": type(model).__name__,
        "weights": weights_of(loaded),
        "data": data,
        "questions": fingerprint(items),
        "number": len(items),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention,
        "max_new_tokens": how.limit,
        "match": how.match,
        "starts": how.starts,
    }


def weights_of(loaded: Loaded) -> str:
    """The revision of a model from the hub; of a local one a digest of its files.

    Of adapters, of those and of the model under them.

    Of weights and of what makes inputs of a question: tokenizer, processor, chat template. Large
    files are read in part, see `skim`. Weights count by their numbers, whatever release of
    transformers has named them and in however many files they lie.
    """
    base = getattr(loaded, "base", None)
    sources = [loaded.source] if base is None else [loaded.source, base.name]
    if not any(Path(source).is_dir() for source in sources):
        return _commit(loaded)
    digest = hashlib.sha256()
    for folder in map(Path, sources):
        if not folder.is_dir():
            digest.update(_commit(loaded).encode())
        for block in skim_tensors(filter(Path.is_file, folder.glob(WEIGHTS)), bare):
            digest.update(block)
        for path in sorted({path for pattern in DECIDE for path in folder.glob(pattern)}):
            if path.is_file():
                for block in skim(path):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _commit(loaded: Loaded) -> str:
    return str(getattr(loaded.model.config, "_commit_hash", None))


def _absolute(source: str) -> str:
    """The path of a local checkpoint, however it was written; a name on the hub as it is."""
    return os.path.abspath(source) if Path(source).is_dir() else source
