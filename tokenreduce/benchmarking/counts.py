"""FLOPs of a prefill in two conventions, for shares of what was saved.

`square` is the report's convention ("matmul"): every pair of tokens. `causal` counts the pairs that
causal attention really multiplies, l (l + 1) / 2, as `sdpa` does when it is given no mask.
The shares of time are judged by `causal`; `square` promises more than there is to save.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenreduce.cost import DecoderShape, macs

CONVENTIONS = ("causal", "square")


def flops(shape: DecoderShape, tokens: Sequence[int], convention: str) -> int:
    """FLOPs of layers that work on `tokens` tokens each: no head, no choice of tokens."""
    square = 2 * macs(shape, tokens, "matmul")
    if convention == "square":
        return square
    # of l^2 pairs, l (l - 1) / 2 are never multiplied, in scores and in values
    skipped = sum(n * (n - 1) for n in tokens) * shape.heads * shape.head_dim
    return square - 2 * skipped
