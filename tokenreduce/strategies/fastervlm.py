"""FasterVLM: pruning by the class token's attention, section 4 of its paper."""

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
    key="zhang2024fastervlm",
    title="[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM "
    "Inference Faster",
    authors="Zhang, Qizhe and Cheng, Aosong and Lu, Ming and Zhuo, Zhiyong and Wang, Minqi and "
    "Cao, Jiajun and Guo, Shaobo and She, Qi and Zhang, Shanghang",
    year=2024,
    arxiv="2412.01818",
    code="Theia-4869/FasterVLM, Apache-2.0",
)


@strategies.register("fastervlm")
@dataclass
class FasterVLM(Scorer):
    """Keep the tokens that the vision tower's class token attends to most.

    The attention is that of the layer whose features the language model gets, mean over heads; a
    tower without a class token is asked for the attention that a patch receives on average. The
    question plays no part. The budget is one for a sample, whatever its number of pictures: a token
    of one competes with those of the others.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"class_attention"})
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = "top k of the class token's attention, mean over heads"
    cost: ClassVar[str] = "O(v log v), on top of one row of the tower's attention"

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) attention of the class token, mean over heads."""
        return tokens["class_attention"].mean(dim=1)

    def scheduler(self) -> Scheduler:
        """Before the language model, at the paper's reduction ratio of 75 %."""
        return Single(layer=0, keep=0.25)
