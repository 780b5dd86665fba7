"""LLaVA-1.5 and LLaVA-NeXT, with a CLIP tower and a Llama decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from tokenreduce.testing.families.family import (
    IMAGE,
    WIDTH,
    Family,
    Inputs,
    Shot,
    build,
    joined,
    text,
    vision,
)

SIDE = 20
"""Pixels of LLaVA-1.5's pictures; patches have 4."""
TILE = 12
"""Side of LLaVA-NeXT's tiles in pixels."""
SIZES = ((12, 22), (24, 24), (22, 12), (16, 24))
"""Heights and widths of the pictures that LLaVA-NeXT gets, one after the other."""
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]


def _make(kind: str, side: int, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vision_config=transformers.CLIPVisionConfig(**vision(side, projection_dim=WIDTH)),
            text_config=transformers.LlamaConfig(**text()),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
            **options,
        )
        return build(f"{kind}ForConditionalGeneration", config, attention)

    return make


def _square(i: int, generator: torch.Generator) -> Shot:
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    return Shot([IMAGE] * (SIDE // 4) ** 2, {"pixel_values": pixels})


def _tiled(i: int, generator: torch.Generator) -> Shot:
    height, width = SIZES[i % len(SIZES)]
    tiles = 1 + -(-height // TILE) * -(-width // TILE)
    pixels = torch.randn(1, tiles, 3, TILE, TILE, generator=generator)
    sizes = torch.tensor([[height, width]])
    return Shot([IMAGE] * packed(height, width), {"pixel_values": pixels, "image_sizes": sizes})


def padded(samples: Sequence[Sequence[Shot]]) -> Inputs:
    """The pictures' tensors, with as many tiles as the picture that has most."""
    most = max(shot.tensors["pixel_values"].shape[1] for sample in samples for shot in sample)

    def filled(shot: Shot) -> Shot:
        pixels = shot.tensors["pixel_values"]
        more = pad(pixels, (0, 0, 0, 0, 0, 0, 0, most - pixels.shape[1]))
        return Shot(shot.ids, shot.tensors | {"pixel_values": more})

    return joined([[filled(shot) for shot in sample] for sample in samples])


def packed(height: int, width: int) -> int:
    """Tokens of a LLaVA-NeXT picture: the whole, then the tiles without their padding.

    The picture is scaled to fit the tiles, and every row ends with a newline token.
    """
    side = TILE // 4
    rows, columns = -(-height // TILE) * side, -(-width // TILE) * side
    if width / height > columns / rows:
        padding = (rows - round(height * columns / width, 7) // 1) // 2
        rows -= 2 * int(padding)
    else:
        padding = (columns - round(width * rows / height, 7) // 1) // 2
        columns -= 2 * int(padding)
    return side * side + rows * (columns + 1)


RECIPES = (
    Family("llava", "llava", _make("Llava", SIDE), _square, main=True),
    Family(
        "llava_next",
        "llava_next",
        _make("LlavaNext", TILE, image_grid_pinpoints=PINPOINTS),
        _tiled,
        padded,
        main=True,
    ),
)
