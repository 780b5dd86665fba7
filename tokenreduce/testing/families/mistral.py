"""Mistral 3 and LLaVA with a Pixtral tower: pictures of any shape, a line break after each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    START,
    Family,
    Inputs,
    Shot,
    build,
    joined,
    text,
    vision,
)
from tokenreduce.testing.families.kit import Kit

PATCH, MERGE = 4, 2
SIDE = 32
"""Pixels of a picture's longer side, at most."""
SIZES = ((24, 32), (16, 24), (32, 16))
"""Heights and widths of the pictures, one after the other."""
BREAK = START
"""Id of `[IMG_BREAK]`, which ends a row; `[IMG_END]` ends the last one. Both are text."""


def _make(kind: str, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        window = options.get("sliding_window")
        config = getattr(transformers, f"{kind}Config")(
            vision_config=transformers.PixtralVisionConfig(**vision(SIDE)),
            text_config=transformers.MistralConfig(**text(sliding_window=window, head_dim=8)),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
            **{"spatial_merge_size": MERGE} if kind == "Mistral3" else {},
            **{"vision_feature_select_strategy": "full"} if kind == "Llava" else {},
        )
        return build(f"{kind}ForConditionalGeneration", config, attention)

    return make


def _lined(unit: int, side: int) -> Callable[[int, torch.Generator], Shot]:
    """Pictures whose tokens are squares of `unit` pixels; none is wider or higher than `side`."""

    def shot(i: int, generator: torch.Generator) -> Shot:
        height, width = (pixels * side // SIDE for pixels in SIZES[i % len(SIZES)])
        line = [IMAGE] * (width // unit) + [BREAK]
        ids = line * (height // unit)
        ids[-1] = END
        pixels = torch.randn(1, 3, height, width, generator=generator)
        sizes = torch.tensor([[height, width]])
        return Shot(ids, {"pixel_values": pixels, "image_sizes": sizes})

    return shot


def padded(samples: Sequence[Sequence[Shot]]) -> Inputs:
    """The pictures' tensors, padded below and to the right to one size."""
    shots = [shot for sample in samples for shot in sample]
    height, width = (max(shot.tensors["pixel_values"].shape[d] for shot in shots) for d in (2, 3))

    def filled(shot: Shot) -> Shot:
        pixels = shot.tensors["pixel_values"]
        more = pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
        return Shot(shot.ids, shot.tensors | {"pixel_values": more})

    return joined([[filled(shot) for shot in sample] for sample in samples])


RECIPES = (
    Family(
        "mistral3", "mistral3", _make("Mistral3"), _lined(PATCH * MERGE, SIDE), padded, main=True
    ),
    Family(
        "mistral3-window",
        "mistral3",
        _make("Mistral3", sliding_window=12),
        _lined(PATCH * MERGE, SIDE),
        padded,
    ),
    Family("llava-pixtral", "llava", _make("Llava"), _lined(PATCH, SIDE // 2), padded),
)


SPECIAL = {IMAGE: "[IMG]", BREAK: "[IMG_BREAK]", END: "[IMG_END]"}


def _processor(side: int, merge: int) -> Callable[[Any, str], Any]:
    def make(tokenizer: Any, template: str) -> Any:
        import transformers

        images = transformers.PixtralImageProcessor(
            size={"longest_edge": side}, patch_size=PATCH * merge
        )
        return transformers.PixtralProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=PATCH,
            spatial_merge_size=merge,
            chat_template=template,
        )

    return make


KITS = (
    Kit("mistral3", SPECIAL, {"image": "[IMG]"}, _processor(SIDE, MERGE)),
    Kit("llava-pixtral", SPECIAL, {"image": "[IMG]"}, _processor(SIDE // 2, 1)),
)
