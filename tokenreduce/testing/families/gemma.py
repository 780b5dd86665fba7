"""Gemma 3 and PaliGemma, with a SigLIP tower and a Gemma decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.testing.families.recipe import (
    END,
    IMAGE,
    LAYERS,
    START,
    Family,
    Inputs,
    Shot,
    build,
    text,
    vision,
)

SIDE = 32
"""Pixels of Gemma 3's pictures: 8 x 8 patches, pooled to 4 x 4 tokens."""
TOKENS = 16
WINDOW = 12
"""Tokens that a sliding layer sees; less than a picture has."""


def _gemma3(**options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        layers = [f"{('sliding', 'full')[i % 2]}_attention" for i in range(LAYERS)]
        decoder = text(
            head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=layers
        )
        config = transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**decoder | options),
            vision_config=transformers.SiglipVisionConfig(**vision(SIDE, vision_use_head=False)),
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            mm_tokens_per_image=TOKENS,
            tie_word_embeddings=False,
        )
        return build("Gemma3ForConditionalGeneration", config, attention)

    return make


def _framed(i: int, generator: torch.Generator) -> Shot:
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    return Shot([START, *[IMAGE] * TOKENS, END], {"pixel_values": pixels})


def _types(ids: Tensor) -> Inputs:
    """1 at the tokens that see the others of their picture in both directions."""
    return {"token_type_ids": (ids == IMAGE).long()}


RECIPES = (Family("gemma3", "gemma3", _gemma3(), _framed, marks=_types, main=True),)
