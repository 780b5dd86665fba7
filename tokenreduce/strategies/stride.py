"""Stride: evenly spaced tokens, a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.pyramid import Pyramid
from tokenreduce.strategy import Strategy, select, strategies
from tokenreduce.tokens import Plan, Tokens


@strategies.register("stride")
@dataclass
class Stride(Strategy):
    """Keep evenly spaced tokens in reading order: every second one at half the budget."""

    formula: ClassVar[str] = "every (v / k)-th token"
    cost: ClassVar[str] = "O(v log v)"

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Token r of n is kept when r * k mod n < k: exactly k of them, evenly spread."""
        rankable = tokens.valid & ~tokens.places.separator
        n = rankable.sum(dim=1, keepdim=True).clamp(min=1)
        k = torch.tensor(budget, device=n.device)[:, None]
        total = torch.tensor(tokens.counts, device=n.device)[:, None].clamp(min=1)
        k = k * n // total if tokens.separated else k
        phase = (rankable.long().cumsum(dim=1) - 1) * k % n
        score = (phase < k).float() + 1.0 / (2.0 + phase.float())
        return select(score, tokens, budget)

    def scheduler(self) -> Scheduler:
        """The pyramid that methods are compared under."""
        return Pyramid()
