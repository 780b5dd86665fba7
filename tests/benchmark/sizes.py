"""The models and prompts that are measured: random weights, LLaMA's proportions, one image.

Shapes: b samples, l sequence, d width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

VARIABLE = "TOKENREDUCE_BENCHMARK"
"""Environment variable: `full` sizes, or `smoke` for a run of seconds that judges nothing."""
MODE = os.environ.get(VARIABLE, "full")
if MODE not in ("full", "smoke"):
    raise ValueError(f"{VARIABLE}={MODE!r} is neither 'full' nor 'smoke'")
SMOKE = MODE == "smoke"
SEED = 0
BEFORE, TEXT, HEAD = 35, 64, 64
"""The image stands behind 35 of 64 text tokens (LLaVA's system prompt); heads of 64."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Size:
    """Decoder layers, and their width."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"


SMALL, WIDE, TINY = Size(16, 512), Size(8, 1536), Size(24, 64)
VISUAL = (576, 1152, 2880)
if SMOKE:
    SMALL, WIDE, TINY, VISUAL = Size(4, 128), Size(4, 256), Size(4, 64), (144,)


@lru_cache(maxsize=1)
def models(size: Size) -> tuple[Any, Any]:
    """A LLaMA with random weights, and its twin on the very same weights that is never reduced."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=size.width,
        intermediate_size=size.width * 43 // 16,  # 2.6875, as LLaMA's 11008 of 4096
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // HEAD),
        num_key_value_heads=max(1, size.width // HEAD),
        max_position_embeddings=8192,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, twin = (
            LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval().to(DEVICE)
            for _ in range(2)
        )
    twin.load_state_dict(model.state_dict(), assign=True)
    return model, twin


def embeddings(size: Size, length: int, batch: int = 1, stream: int = 0) -> Tensor:
    """(b, l, d) drawn anew from the same seed at every call; another `stream`, another draw."""
    generator = torch.Generator().manual_seed(SEED + stream)
    return torch.randn(batch, length, size.width, generator=generator).to(DEVICE)


def image(visual: int, batch: int = 1) -> Tensor:
    """(b, l) True at the visual tokens."""
    mask = torch.zeros(batch, visual + TEXT, dtype=torch.bool, device=DEVICE)
    mask[:, BEFORE : BEFORE + visual] = True
    return mask
