"""No reduction: the baseline under the same call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.pyramid import Pyramid
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import Plan, Tokens


@strategies.register("none")
@dataclass
class Keep(Strategy):
    """Keep every token, whatever the schedule: the unreduced model."""

    reduces: ClassVar[bool] = False

    formula: ClassVar[str] = "every token"
    cost: ClassVar[str] = "none"

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """All of them."""
        return Plan.everything(tokens.valid)

    def scheduler(self) -> Scheduler:
        """The pyramid that methods are compared under; whatever it says, everything stays."""
        return Pyramid()
