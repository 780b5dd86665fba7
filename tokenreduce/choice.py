"""The name under which version 0.1 had what methods are made of: `tokenreduce.selection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenreduce import selection
from tokenreduce.errors import read_renamed, warn_once
from tokenreduce.tokens import Plan, Tokens

EARLIER = {"elsewhere": "other_picture", "of_own": "within_own_budget"}


def packed(mask: Tensor, tokens: Tokens, budget: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The kept indices of a mask, and which of them count: `Plan.of` has both."""
    warn_once("tokenreduce.choice.packed is tokenreduce.Plan.of from version 0.2 on")
    plan = Plan.of(mask, tokens, budget)
    return plan.keep, plan.valid


def __getattr__(name: str) -> Any:
    if name in EARLIER:
        return read_renamed(selection, name, EARLIER)
    found = getattr(selection, name)
    if not name.startswith("__"):
        warn_once("tokenreduce.choice is called tokenreduce.selection from version 0.2 on")
    return found
