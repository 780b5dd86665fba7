"""PyramidDrop: conical visual concentration (arXiv 2410.17247, CVPR 2025), section 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenreduce.strategy import Positions, Scorer, strategies
from tokenreduce.tokens import Tokens


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
    paper: ClassVar[str] = "arXiv 2410.17247"

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) attention of the asking tokens, mean over heads."""
        return tokens["attention"].mean(dim=1)
