"""How far two next-token distributions are apart.

Shapes: ... any, V vocabulary.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor


def kullback_leibler(one: Tensor, other: Tensor) -> Tensor:
    """(...) KL(one || other) in bits, from log-probabilities (..., V); infinite where it is.

    Tokens that `one` rules out count nothing, whatever `other` says of them. NaN stays NaN.
    """
    chance = one.exp()
    return torch.where(chance == 0, 0.0, chance * (one - other)).sum(dim=-1).clamp(min=0) / log(2)


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """(...) Jensen-Shannon divergence in bits, 0 to 1, from log-probabilities (..., V).

    Source: Lin 1991, IEEE Transactions on Information Theory 37.
    """
    middle = torch.logaddexp(one, other) - log(2)
    both = kullback_leibler(one, middle) + kullback_leibler(other, middle)
    return (both / 2).clamp(max=1)
