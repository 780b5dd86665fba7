"""FitPrune: fit and prune, section 3 of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from torch import Tensor

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.explicit import Explicit
from tokenreduce.strategy import Scorer, strategies
from tokenreduce.tokens import Tokens

PAPER = Paper(
    key="ye2025fit",
    title="Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large "
    "Language Models",
    authors="Ye, Weihao and Wu, Qiong and Lin, Wenhao and Zhou, Yiyi",
    year=2025,
    arxiv="2409.10197",
    venue="Proceedings of the AAAI Conference on Artificial Intelligence (AAAI)",
    code="ywh187/FitPrune, no licence published",
)


@strategies.register("fitprune")
@dataclass
class FitPrune(Scorer):
    """Drop, after almost every layer, what text and picture alike attend to least.

    The score is the attention that a token got from the text times what it got from the visual
    tokens, each of the largest head, in the layer before the stop. (The original drops between a
    layer's attention and its MLP: what is left is the same at the next layer's input.) Pictures of
    a sample share its budget.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"received_from_text", "received_from_visual"})
    reads_text: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top k of (attention from text) x (attention from visual tokens), each of the largest head"
    )
    cost: ClassVar[str] = (
        "O(h l² e) for the attention of all l tokens with h heads e wide, in blocks"
    )

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) attention from the text times attention from the picture."""
        return tokens["received_from_text"].float() * tokens["received_from_visual"].float()

    def scheduler(self) -> Scheduler:
        """The authors' recipe for LLaVA-1.5 at 60 % less computation, stretched to the depth."""
        left = [TOKENS - n for n in accumulate(DROPPED)]
        stops = [(i + 1, n) for i, n in enumerate(left) if DROPPED[i]]
        layers, counts = zip(*stops, strict=True)
        return Explicit(tuple(i / 32 for i in layers), tuple(n / TOKENS for n in counts))


TOKENS = 576
DROPPED = (
    14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4,
    26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0,
)  # fmt: skip
"""Tokens dropped after each of 32 layers, of 576: what their calibration gives at 60 %."""
