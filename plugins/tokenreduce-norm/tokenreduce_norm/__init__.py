"""A strategy of one file: keep the tokens whose hidden states are longest."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import tokenreduce as tr


@tr.strategies.register("norm")
@dataclass
class Norm(tr.Scorer):
    """Keep the tokens whose hidden states have the largest (or smallest) `p`-norm."""

    p: float = 2.0
    smallest: bool = False

    paper: ClassVar[str] = "the tutorial of tokenreduce"

    def score(self, tokens: tr.Tokens) -> Tensor:
        """(b, v) length of each hidden state, in fp32 whatever the model's dtype."""
        norm: Tensor = tokens.hidden.float().norm(p=self.p, dim=-1)
        return -norm if self.smallest else norm
