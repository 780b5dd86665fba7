"""The processors of the tiny checkpoints: a module per group of families, each with its `KITS`."""

from __future__ import annotations

from tokenreduce.testing.kits import (
    gemma,
    glm,
    idefics,
    internvl,
    mistral,
    onevision,
    perception,
    qwen_vl,
)
from tokenreduce.testing.kits.kit import PLAIN, Kit

__all__ = ["KITS", "PLAIN", "Kit"]

KITS: dict[str, Kit] = {
    kit.family: kit
    for module in (qwen_vl, glm, internvl, onevision, perception, gemma, idefics, mistral)
    for kit in module.KITS
}
"""Every kit, by its family's recipe."""
