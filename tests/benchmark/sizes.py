"""The models and prompts that are measured: random weights, LLaMA's proportions, one image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tests.benchmark.engine import Engine
from tokenreduce.benchmarking.synthetic import MarkedPrompt
from tokenreduce.inference.clock import Clock

VARIABLE = "TOKENREDUCE_BENCHMARK"
"""Environment variable: `full` sizes, or `smoke` for a run of seconds that judges nothing."""
MODE = os.environ.get(VARIABLE, "full")
if MODE not in ("full", "smoke"):
    raise ValueError(f"{VARIABLE}={MODE!r} is neither 'full' nor 'smoke'")
SMOKE = MODE == "smoke"
SEED = 0
TEXT, HEAD = 64, 64
"""Text tokens (35 of them before the image, as LLaVA's system prompt); width of a head."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = Clock(DEVICE)
ENGINE = Engine(CLOCK)


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


def prompt(visual: int, batch: int = 1) -> MarkedPrompt:
    """`visual` tokens between the text tokens that every prompt here has."""
    return MarkedPrompt(visual, TEXT, batch, SEED)
