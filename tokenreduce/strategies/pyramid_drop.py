"""PyramidDrop: conical visual concentration, section 3 of its paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenreduce.paper import Paper
from tokenreduce.strategy import Positions, Scorer, strategies
from tokenreduce.tokens import Tokens

PAPER = Paper(
    key="xing2024pyramiddrop",
    title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual "
    "Redundancy Reduction",
    authors="Xing, Long and Huang, Qidong and Dong, Xiaoyi and Lu, Jiajie and Zhang, Pan and "
    "Zang, Yuhang and Cao, Yuhang and He, Conghui and Wang, Jiaqi and Wu, Feng and Lin, "
    "Dahua",
    year=2024,
    arxiv="2410.17247",
    code="Cooperx521/PyramidDrop, MIT",
    note='In the proceedings of CVPR 2025 it is titled "Conical Visual Concentration for '
    'Efficient Large Vision-Language Models".',
)


@strategies.register("pyramid_drop")
@dataclass
class PyramidDrop(Scorer):
    """Keep the tokens that the last instruction token attends to most, stage by stage.

    The score is that of the layer at whose input tokens are dropped, averaged over heads. In
    training every token right before an answer asks, as in the original code.

    Deviations from that code: with labels the same tokens ask in evaluation too (there the last
    token of the answer would ask, and the answer be seen); a sample without an answer asks with its
    last token (there it would never be reduced).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    positions: ClassVar[Positions] = "compact"
    reads_text: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top k of the last instruction token's attention, mean over heads, at every stage"
    )
    cost: ClassVar[str] = (
        "O(h e v) for one row of attention with h heads e wide, O(v log v) to sort, at every stage"
    )

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) attention of the asking tokens, mean over heads."""
        return tokens["attention"].mean(dim=1)
