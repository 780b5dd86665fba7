"""FLOPs of a prefill in two conventions, for shares of what was saved.

`square` counts every pair of tokens, as the report does; `causal` those that causal attention
really multiplies. The shares of time are judged by `causal`; `square` promises more than there is
to save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenreduce.cost import CONVENTIONS, DecoderShape, macs

COUNTED: Mapping[str, str] = {"causal": "causal", "square": "matmul"}
"""Key in recorded results -> the convention of `tokenreduce.cost` that it is."""


def flops(shape: DecoderShape, tokens: Sequence[int], key: str) -> int:
    """FLOPs of layers that work on `tokens` tokens each: no head, no choice of tokens."""
    convention = CONVENTIONS[COUNTED[key]]
    return convention.flops_per_mac * macs(shape, tokens, convention.name)
