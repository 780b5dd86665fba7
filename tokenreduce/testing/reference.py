"""Attention of a decoder layer, written out from its weights: the reference of every score.

Nothing of the engine or of transformers' attention is used. Shapes: l tokens of one sample
without padding, d width, h heads, e head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.testing.oracle import decoder_of


def attention(
    model: Any, layer: int, x: Tensor, seen: Tensor, positions: Tensor | None = None
) -> Tensor:
    """(h, l, l) softmax of the queries and keys that a LLaMA-like layer makes of its input.

    Args:
        model: an untouched model; Llama, Mistral, Qwen2, Qwen3, GLM or a Gemma inside.
        layer: the decoder layer.
        x: (l, d) the layer's input.
        seen: (l, l) True where a query sees a key.
        positions: (3, l) by time, row and column, with M-RoPE; else they count from 0.
    """
    decoder = decoder_of(model)
    config, block = decoder.config, decoder.layers[layer]
    mine: Any = block.self_attn
    # the weights of a Gemma's norms are kept as what they add to 1
    base = float(config.model_type.startswith("gemma"))
    normed = _root_mean_square(x, base + block.input_layernorm.weight, config.rms_norm_eps)
    h, groups = config.num_attention_heads, config.num_key_value_heads
    e = mine.q_proj.weight.shape[0] // h
    q = _projected(mine.q_proj, normed).view(-1, h, e)
    k = _projected(mine.k_proj, normed).view(-1, groups, e)
    if hasattr(mine, "q_norm"):
        q = _root_mean_square(q, base + mine.q_norm.weight, config.rms_norm_eps)
        k = _root_mean_square(k, base + mine.k_norm.weight, config.rms_norm_eps)
    rope = config.rope_parameters
    theta = (rope.get(mine.layer_type) if "rope_theta" not in rope else rope)["rope_theta"]
    if positions is None:
        positions = torch.arange(len(x)).expand(3, -1)
    width = int(e * rope.get("partial_rotary_factor", 1.0))
    angle = positions[_axes(rope, width // 2)].T * theta ** (-torch.arange(0, width, 2) / width)
    neighbours = config.model_type.startswith("glm")
    q, k = _turned(q, angle, neighbours), _turned(k, angle, neighbours)
    k = k.repeat_interleave(h // groups, dim=1)
    scale = getattr(config, "query_pre_attn_scalar", None) or e
    scores = torch.einsum("qhe,khe->hqk", q, k) / scale**0.5
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap:
        scores = torch.tanh(scores / cap) * cap
    shares: Tensor = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return shares


def _root_mean_square(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed: Tensor = weight * x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
    return normed


def _projected(linear: Any, x: Tensor) -> Tensor:
    product: Tensor = x @ linear.weight.T
    return product if linear.bias is None else product + linear.bias


def _axes(rope: Any, turns: int) -> list[int]:
    """Which axis of the positions each turn of a head goes by (M-RoPE); one is as good without."""
    sections = rope.get("mrope_section", [turns])
    if not rope.get("mrope_interleaved"):
        return [axis for axis, n in enumerate(sections) for _ in range(n)]
    return [i % 3 if i < 3 * sections[i % 3] else 0 for i in range(turns)]


def _turned(x: Tensor, angle: Tensor, neighbours: bool) -> Tensor:
    """Rotary embedding of (l, h, e) as a complex product with turns by `angle` (l, turns).

    Real and imaginary part are the two halves of what is turned, or neighbours.
    """
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    x, rest = x[..., : 2 * angle.shape[1]], x[..., 2 * angle.shape[1] :]
    parts = (x[..., ::2], x[..., 1::2]) if neighbours else x.chunk(2, dim=-1)
    turned = torch.complex(*(part.contiguous() for part in parts)) * turn
    pair = (turned.real, turned.imag)
    turned = torch.stack(pair, dim=-1).flatten(-2) if neighbours else torch.cat(pair, dim=-1)
    return torch.cat([turned, rest], dim=-1)
