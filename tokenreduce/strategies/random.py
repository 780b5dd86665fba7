"""Random choice: the baseline that every comparison needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.strategy import Scorer, strategies
from tokenreduce.tokens import Tokens


@strategies.register("random")
@dataclass
class Random(Scorer):
    """Keep tokens drawn at random, in order.

    A sample's draw depends on the reduction's seed, the layer and its own tokens' indices alone:
    never on its batch mates, the device, or how often the model was called. Pass another `seed`
    to `reduce()` for another draw.
    """

    formula: ClassVar[str] = "k tokens drawn without replacement"
    cost: ClassVar[str] = "O(v log v)"

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) one draw per original token index."""
        seed = (tokens.seed * 1_000_003 + tokens.layer * 7_919 + 17) % 2**63
        generator = torch.Generator().manual_seed(seed)
        # one number per original index, so that padding and batch mates cannot shift the draw
        draws = torch.rand(_longest(tokens), generator=generator)
        return draws.to(tokens.origin.device)[tokens.origin]


def _longest(tokens: Tokens) -> int:
    """A power of two that holds every original index: the first draws are then the same."""
    return 1 << max(16, tokens.original.bit_length())
