"""InternVL, with its own tower and a Qwen2 decoder: images of one tile and of several, videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    START,
    VIDEO,
    WIDTH,
    Family,
    Shot,
    build,
    text,
)
from tokenreduce.testing.families.kit import Kit

SIDE = 32
"""Pixels of a tile: 8 x 8 patches, of which 2 x 2 are shuffled into a token."""
TOKENS = 16
TILES = (1, 3, 1)
"""Tiles of the images, one after the other; the last of several is the thumbnail."""


def _make(attention: str) -> nn.Module:
    import transformers

    vision = transformers.InternVLVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=2,
        image_size=[SIDE, SIDE],
        patch_size=[4, 4],
        layer_scale_init_value=1.0,
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**text()),
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return build("InternVLForConditionalGeneration", config, attention)


def _tiles(i: int, generator: torch.Generator) -> Shot:
    """An image: its tiles in one run of placeholders, between a start and an end."""
    n = TILES[i % len(TILES)]
    pixels = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return Shot([START, *[IMAGE] * (n * TOKENS), END], {"pixel_values": pixels})


def _frames(i: int, generator: torch.Generator) -> Shot:
    """A video: every frame an image of its own, after its number."""
    n = 2 + i % 2
    pixels = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    ids = [token for k in range(n) for token in (20, 10 + k, START, *[IMAGE] * TOKENS, END)]
    return Shot(ids, {"pixel_values": pixels})


RECIPES = (
    Family("internvl", "internvl", _make, _tiles, main=True),
    Family("internvl-video", "internvl", _make, _frames),
)


NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
IDS = dict(zip((START, END, IMAGE, VIDEO), NAMES.values(), strict=True))


def _processor(tokenizer: Any, template: str) -> Any:
    import transformers

    size = {"height": SIDE, "width": SIDE}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, max_patches=6
        ),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size, do_sample_frames=False),
        image_seq_length=TOKENS,
        chat_template=template,
    )


_MARKS = {"image": f"{IDS[IMAGE]}\n", "video": f"{IDS[VIDEO]}\n"}

KITS = (Kit("internvl", IDS, _MARKS, _processor, NAMES),)
