"""What tells one set of questions from another, and between which answers a model chooses.

Questions themselves are `tokenreduce.data.items`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenreduce.data.items import Item
from tokenreduce.files import skim


def fingerprint(items: Sequence[Item]) -> str:
    """Tells one set of questions from another: by every text and by what the pictures hold."""
    digest = hashlib.sha256()
    files: dict[Path, bytes] = {}
    for item in items:
        texts = (item.name, str(item.image), item.question, item.kind)
        several = (item.right_answers, item.options, item.paraphrase)
        digest.update(json.dumps([*texts, *several]).encode())
        if isinstance(item.pixels, Path):
            if item.pixels not in files:
                files[item.pixels] = hashlib.sha256(b"".join(skim(item.pixels))).digest()
            digest.update(files[item.pixels])
        else:
            pixels = np.asarray(item.picture())
            digest.update(f"{pixels.shape}".encode())
            digest.update(pixels.tobytes())
    return digest.hexdigest()[:16]


def candidates(items: Sequence[Item], most: int = 64) -> dict[str, list[str]]:
    """Per kind, the answers among which a model's first token is looked at: `most` at most.

    The options where the data names them, else the right answers of that kind, the most frequent
    first.
    """
    found: dict[str, dict[str, int]] = {}
    for item in items:
        row = found.setdefault(item.kind, {})
        for answer in item.options or item.right_answers:
            row[answer] = row.get(answer, 0) + 1
    return {
        kind: sorted(sorted(row), key=lambda answer: -row[answer])[:most]
        for kind, row in found.items()
    }
