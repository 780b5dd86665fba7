"""How the arithmetic of a decoder layer is counted: one table of the published conventions.

Per decoder layer with n tokens, width d, FFN width m, h heads and g key/value
heads of size e, and an FFN of f matrices, the multiply-accumulates (MACs) are, by convention:

    F2      4 n d^2 + 2 n^2 d + 2 n d m             FastV (arXiv 2403.06764), DivPrune's code
    F3      4 n d^2 + 2 n^2 d + 3 n d m             PyramidDrop (arXiv 2410.17247), VScan
    matmul  2 n d e (h + g) + 2 n^2 h e + f n d m   the matrices that the layer really multiplies
                                                    (and n d times the experts of a router)
    causal  matmul - n (n - 1) h e                  the same without the pairs above the diagonal,
                                                    as `sdpa` multiplies when it is given no mask

F2 and F3 are MACs that the papers print as FLOPs, so their `flops` are their MACs; "matmul" counts
two FLOPs for a MAC, as `torch.utils.flop_counter` does, and so does "causal". All but "causal"
count every pair of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenreduce.checks import one_of

if TYPE_CHECKING:
    from tokenreduce.cost.prefill import DecoderShape


@dataclass(frozen=True)
class Convention:
    """One way to count the arithmetic of a decoder layer.

    Attributes:
        name: as options and reports have it.
        macs: multiply-accumulates of one layer with n tokens (a mean of ragged samples, maybe).
        flops_per_mac: floating-point operations that it prints for each of them.
    """

    name: str
    macs: Callable[[DecoderShape, float], float]
    flops_per_mac: int


def _published(ffn_matrices: int) -> Callable[[DecoderShape, float], float]:
    """The formula of papers, which reads neither key/value heads nor the FFN's kind."""
    return lambda s, n: n * s.hidden * (4 * s.hidden + 2 * n + ffn_matrices * s.intermediate)


def _matmul(shape: DecoderShape, n: float) -> float:
    d, m, e = shape.hidden, shape.intermediate, shape.head_dim
    projections = 2 * n * d * e * (shape.heads + shape.kv_heads)
    attention = 2 * n**2 * e * shape.heads
    return projections + attention + n * d * (shape.ffn_matrices * m + shape.router)


def _causal(shape: DecoderShape, n: float) -> float:
    # of n^2 pairs, n (n - 1) / 2 are never multiplied, in scores and in values
    return _matmul(shape, n) - n * (n - 1) * shape.heads * shape.head_dim


CONVENTIONS: Mapping[str, Convention] = {
    made.name: made
    for made in (
        Convention("F2", _published(ffn_matrices=2), flops_per_mac=1),
        Convention("F3", _published(ffn_matrices=3), flops_per_mac=1),
        Convention("matmul", _matmul, flops_per_mac=2),
        Convention("causal", _causal, flops_per_mac=2),
    )
}
"""Every convention by its name."""


def convention_of(name: str) -> Convention:
    """The convention of a name.

    Raises:
        ValueError: an unknown one.
    """
    return CONVENTIONS[one_of(name, CONVENTIONS, "FLOPs convention")]
