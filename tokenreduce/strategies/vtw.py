"""VTW: visual tokens withdrawal (arXiv 2405.05803, AAAI 2025), section 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Scorer, strategies
from tokenreduce.tokens import Tokens


@strategies.register("vtw")
@dataclass
class VTW(Scorer):
    """Withdraw all visual tokens at one layer.

    The method has no ranking. Under a schedule that leaves some, the last ones stay: those
    nearest to the text.
    """

    paper: ClassVar[str] = "arXiv 2405.05803"

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) later tokens score higher."""
        return tokens.origin.float()

    def scheduler(self) -> Scheduler:
        """Everything leaves at half the depth (the authors use layer 15 or 16 of 32)."""
        return Single(layer=0.5, keep=0.0)
