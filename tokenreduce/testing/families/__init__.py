"""Recipes of the tiny models: one module per group of families, each with its `RECIPES`."""

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

__all__ = ["RECIPES", "AbsentError", "Family", "Shot"]

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
