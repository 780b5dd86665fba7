"""The tiny models and their processors: one module per group of families.

Each has its `RECIPES`, and its `KITS` where a checkpoint of it can be loaded from a folder.
"""

from __future__ import annotations

from tokenreduce.testing.families import (
    decoder,
    gemma,
    generic,
    glm,
    idefics,
    internvl,
    llava,
    mistral,
    onevision,
    perception,
    qwen_vl,
)
from tokenreduce.testing.families.family import AbsentError, Family, Shot
from tokenreduce.testing.families.kit import PLAIN, Kit

__all__ = ["KITS", "PLAIN", "RECIPES", "AbsentError", "Family", "Kit", "Shot"]

RECIPES: tuple[Family, ...] = (
    *decoder.RECIPES,
    *llava.RECIPES,
    *gemma.RECIPES,
    *generic.RECIPES,
    *idefics.RECIPES,
    *mistral.RECIPES,
    *qwen_vl.RECIPES,
    *glm.RECIPES,
    *internvl.RECIPES,
    *onevision.RECIPES,
    *perception.RECIPES,
)
"""Every recipe, in the order in which the laws are tried."""

KITS: dict[str, Kit] = {
    kit.family: kit
    for module in (qwen_vl, glm, internvl, onevision, perception, gemma, idefics, mistral)
    for kit in module.KITS
}
"""Every processor, by the name of its recipe."""
