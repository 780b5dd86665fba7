"""Bare decoders: the pictures are rows of embeddings, which the caller marks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tokenreduce.testing.families.family import IMAGE, WIDTH, Family, Shot, build, text

RUNS = (16, 25, 9)
"""Visual tokens of the pictures, one after the other."""


def _make(kind: str, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**text(**options))
        return build(f"{kind}ForCausalLM", config, attention)

    return make


def _shot(i: int, generator: torch.Generator) -> Shot:
    n = RUNS[i % len(RUNS)]
    return Shot([IMAGE] * n, {"shown": torch.randn(n, WIDTH, generator=generator)})


def _family(name: str, kind: str, main: bool = False, **options: Any) -> Family:
    return Family(name, "decoder", _make(kind, **options), _shot, main=main, bare=True)


RECIPES = (
    _family("llama", "Llama", main=True, num_key_value_heads=4),
    _family("llama-gqa", "Llama"),
    _family("mistral", "Mistral", sliding_window=None),
    _family("mistral-window", "Mistral", sliding_window=12),
    _family("qwen2", "Qwen2"),
    _family("qwen3", "Qwen3", head_dim=8),
)
