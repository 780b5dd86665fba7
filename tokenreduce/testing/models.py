"""Tiny models with random weights, at least one per adapter, for the law suite.

They are made from configs, seeded, in fp32 and evaluation mode, with weights scaled so that
attention is not flat, logits have a standard deviation of about 1, and a dropped token shows. Their
recipes are in `tokenreduce.testing.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tokenreduce.testing.families import RECIPES, AbsentError, Family, Shot
from tokenreduce.testing.families.family import END, IMAGE, LAYERS, START, VIDEO, WIDTH, WORDS
from tokenreduce.testing.families.llava import TILE

__all__ = [
    "END", "FAMILIES", "IMAGE", "LAYERS", "START", "TILE", "VIDEO", "WIDTH", "WORDS", "AbsentError",
    "Family", "Shot",
]  # fmt: skip

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in RECIPES})
"""Every recipe: name -> family."""
