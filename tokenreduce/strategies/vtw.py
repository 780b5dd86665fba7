"""VTW: visual tokens withdrawal, section 3 of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Scorer, strategies
from tokenreduce.tokens import Tokens

PAPER = Paper(
    key="lin2025boosting",
    title="Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid "
    "Inference",
    authors="Lin, Zhihang and Lin, Mingbao and Lin, Luxi and Ji, Rongrong",
    year=2025,
    arxiv="2405.05803",
    venue="Proceedings of the AAAI Conference on Artificial Intelligence (AAAI)",
    code="lzhxmu/VTW, no licence published",
)


@strategies.register("vtw")
@dataclass
class VTW(Scorer):
    """Withdraw all visual tokens at one layer.

    The method has no ranking. Under a schedule that leaves some, the last ones stay: those
    nearest to the text.
    """

    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = "the last k tokens; under its own schedule none"
    cost: ClassVar[str] = "O(v log v)"

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) later tokens score higher."""
        return tokens.origin.float()

    def scheduler(self) -> Scheduler:
        """Everything leaves at half the depth (the authors use layer 15 or 16 of 32)."""
        return Single(layer=0.5, keep=0.0)
