"""ViP-LLaVA and Aria, which have no adapter of their own and go by the generic one."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    START,
    WIDTH,
    Family,
    Shot,
    build,
    text,
    vision,
)

SIDE = 24
"""Pixels of the pictures; patches have 4."""
PATCHES = (SIDE // 4) ** 2
LATENTS = 20
"""What Aria's projector makes of the patches of a picture."""


def _aria(attention: str) -> nn.Module:
    import transformers

    options = {
        "intermediate_size": 16,
        "moe_num_experts": 4,
        "moe_topk": 2,
        "moe_num_shared_experts": 1,
        "head_dim": 8,
    }
    config = transformers.AriaConfig(
        text_config=transformers.AriaTextConfig(**text() | options),
        vision_config=transformers.Idefics3VisionConfig(**vision(SIDE)),
        image_token_index=IMAGE,
        projector_patch_to_query_dict={PATCHES: LATENTS},
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return build("AriaForConditionalGeneration", config, attention)


def _vip(attention: str) -> nn.Module:
    import transformers

    known = inspect.signature(transformers.VipLlavaConfig).parameters
    old = "vision_feature_layers"  # the option's name before transformers 5.23
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision(SIDE, projection_dim=WIDTH)),
        text_config=transformers.LlamaConfig(**text()),
        image_token_index=IMAGE,
        tie_word_embeddings=False,
        **{old if old in known else "vision_feature_layer": [-1]},
    )
    return build("VipLlavaForConditionalGeneration", config, attention)


def _framed(n: int) -> Callable[[int, torch.Generator], Shot]:
    def shot(i: int, generator: torch.Generator) -> Shot:
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
        return Shot([START, *[IMAGE] * n, END], {"pixel_values": pixels})

    return shot


RECIPES = (
    Family("vipllava", "generic", _vip, _framed(PATCHES), main=True),
    Family("aria", "generic", _aria, _framed(LATENTS)),
)
