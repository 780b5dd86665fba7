"""Attention of a decoder layer, written out from its weights: the reference of every score.

Nothing of the engine or of transformers' attention is used. Shapes: l tokens of one sample
without padding, d width, h heads, e head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.testing.oracle import decoder_of


def attention(model: Any, layer: int, x: Tensor, seen: Tensor) -> Tensor:
    """(h, l, l) softmax of the queries and keys that a LLaMA-like layer makes of its input.

    Args:
        model: an untouched model; Llama, Mistral, Qwen2, Qwen3 or a Gemma inside.
        layer: the decoder layer.
        x: (l, d) the layer's input; positions count from 0.
        seen: (l, l) True where a query sees a key.
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
    q, k = _turned(q, theta), _turned(k, theta)
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


def _turned(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding as a complex product: halves of (l, h, e) are real and imaginary part."""
    n, _, e = x.shape
    angle = torch.arange(n)[:, None] * theta ** (-torch.arange(0, e, 2) / e)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    turned = torch.complex(*x.chunk(2, dim=-1)) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)
