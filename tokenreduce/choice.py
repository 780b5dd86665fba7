"""The name under which version 0.1 had what methods are made of: `tokenreduce.selection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenreduce.errors import read_moved, warn_once
from tokenreduce.tokens import Plan, Tokens

SAME = (
    "DENSE",
    "MIXED",
    "dense",
    "blocks",
    "candidates",
    "kept",
    "empty_mix",
    "Cosines",
    "one_by_one",
)
EARLIER = {"elsewhere": "other_picture", "of_own": "within_own_budget"}
HOMES = {
    earlier: f"tokenreduce.selection.{now}"
    for earlier, now in ({name: name for name in SAME} | EARLIER).items()
}


def packed(mask: Tensor, tokens: Tokens, budget: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The kept indices of a mask, and which of them count: `Plan.of` has both."""
    warn_once("tokenreduce.choice.packed is tokenreduce.Plan.of from version 0.2 on")
    plan = Plan.of(mask, tokens, budget)
    return plan.keep, plan.valid


def __getattr__(name: str) -> Any:
    return read_moved(__name__, name, HOMES)
