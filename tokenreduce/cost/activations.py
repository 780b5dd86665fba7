"""How much memory the tensors between the operations of a model take, in a prefill and in training.

Counted are decoder layers of LLaMA's build (RMS norms in fp32 in front of attention and FFN), with
attention that never holds the square of scores (sdpa, flash). With n tokens, width d, FFN width m,
h query and g key/value heads of size e, and b bytes for a number, the tensors alive at once are

    prefill  b n max(3 d + 3 m, 2 d + 4 h e + 2 g e) + 2 b n e + 8 n
             (a layer's input, the sum after attention, its norm, and gate, activation and product;
             or input, norm, queries, keys, values and three tensors of the rotation; with the
             rotary tables and the position ids), of the layer with most tokens
    stored   b n (4 d + 2 h e + 2 g e + 4 m) + 4 n (2 d + h + 2) of every layer, for backward
             (in b: both normalised sums and both outputs of the norms, queries, keys, values,
             attention's output, gate, up, activation, product; in fp32: both sums that are
             normalised, their scales, and attention's normaliser)
    checkpointed  b n d of every layer, its input, and `stored` of the layer that is run again

A FFN of two matrices holds 2 m instead of 3 m and stores 2 m instead of 4 m. A vision tower that
needs more in its turn decides the prefill: n places times max(4 d + 2 m or 3 m, 3 d + 4 h e).

Not counted: weights, gradients, optimiser, the KV cache (`kv_bytes`), logits (`logits_bytes`),
masks, allocator and kernel workspace, the vision tower in training, and what single families add
(norms of queries and keys, second norms after attention and FFN, dropout).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenreduce.cost.prefill import DecoderShape
    from tokenreduce.cost.tower_sizes import TowerShape


@dataclass(frozen=True)
class Activations:
    """Bytes of the tensors between operations, as the module says.

    Attributes:
        prefill: the most that is alive at once in a layer, without gradients.
        stored: what all decoder layers keep for backward.
        checkpointed: the same with activation checkpointing of every layer.
    """

    prefill: int
    stored: int
    checkpointed: int


def activations(
    shape: DecoderShape,
    tokens: Sequence[int],
    bytes_per_value: float = 2,
    tower: TowerShape | None = None,
    places: int = 0,
) -> Activations:
    """The activation memory of layers that work on `tokens` tokens each.

    Args:
        shape: of the decoder.
        tokens: per layer, of all samples of a batch together.
        bytes_per_value: 2 for fp16 and bf16, 4 for fp32.
        tower: the vision tower, which a prefill runs before.
        places: patches and class tokens that the tower works on.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    width, inner, gated = shape.hidden, shape.intermediate, shape.ffn_matrices == 3
    most = max(tokens, default=0)
    tables = most * (2 * shape.head_dim * bytes_per_value + 8)
    alive = max(3 * width + (3 if gated else 2) * inner, 2 * width + 4 * queries + 2 * keys)
    peak = most * alive * bytes_per_value + tables
    if tower is not None:
        across = tower.heads * tower.head_dim
        held = max(
            4 * tower.hidden + tower.alive * tower.intermediate, 3 * tower.hidden + 4 * across
        )
        peak = max(peak, places * held * bytes_per_value)

    def stored(n: int) -> float:
        held = 4 * width + 2 * queries + 2 * keys + (4 if gated else 2) * inner
        return n * (held * bytes_per_value + 4 * (2 * width + shape.heads + 2))

    return Activations(
        prefill=round(peak),
        stored=round(sum(map(stored, tokens))),
        checkpointed=round(sum(tokens) * width * bytes_per_value + stored(most)),
    )


def logits_bytes(shape: DecoderShape, positions: int = 1, bytes_per_value: float = 2) -> int:
    """Bytes of the logits at `positions` positions, once; a loss in fp32 holds more copies."""
    return int(positions * shape.vocab * bytes_per_value)
