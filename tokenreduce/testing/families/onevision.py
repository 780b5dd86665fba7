"""LLaVA-OneVision and LLaVA-NeXT-Video: images in tiles, several images, videos, and mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from tokenreduce.testing.families.family import (
    IMAGE,
    VIDEO,
    WIDTH,
    Family,
    Inputs,
    Shot,
    build,
    joined,
    text,
    vision,
)
from tokenreduce.testing.families.kit import Kit

SIDES = {"onevision": 3, "next_video": 4}
"""Patches on a side of a tile, 4 pixels each; odd, so that pooling a frame has to round."""
SIZES = ((12, 22), (24, 24), (22, 12), (16, 24))
"""Heights and widths of the pictures, one after the other, for tiles of 12 pixels."""
MOST = 2
"""Tiles' worth of tokens from which LLaVA-OneVision scales a picture's grid down."""
FRAMES = 3


def pinpoints(tile: int) -> list[list[int]]:
    """Heights and widths of grids that a picture may be cut by."""
    return [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]


def _onevision(attention: str) -> nn.Module:
    import transformers

    tile = 4 * SIDES["onevision"]
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**vision(tile, vision_use_head=False)),
        text_config=transformers.Qwen2Config(**text()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints(tile),
        vision_aspect_ratio=f"anyres_max_{MOST}",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return build("LlavaOnevisionForConditionalGeneration", config, attention)


def _next_video(attention: str) -> nn.Module:
    import transformers

    tile = 4 * SIDES["next_video"]
    config = transformers.LlavaNextVideoConfig(
        vision_config=transformers.CLIPVisionConfig(**vision(tile, projection_dim=WIDTH)),
        text_config=transformers.LlamaConfig(**text()),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=pinpoints(tile),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return build("LlavaNextVideoForConditionalGeneration", config, attention)


def grid(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture's tiles, joined and without their padding."""
    rows, columns = (side * min(2, -(-x // (4 * side))) for x in (height, width))
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows, columns


def scaled(rows: int, columns: int, side: int) -> tuple[int, int]:
    """Rows and columns of a grid after LLaVA-OneVision has scaled it down."""
    ratio = math.sqrt(rows * columns / (MOST * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _tiled(name: str) -> Callable[[int, torch.Generator], Shot]:
    side = SIDES[name]

    def shot(i: int, generator: torch.Generator) -> Shot:
        height, width = (x * side // 3 for x in SIZES[i % len(SIZES)])
        tiles = 1 + math.prod(-(-x // (4 * side)) for x in (height, width))
        rows, columns = grid(height, width, side)
        if name == "onevision":
            rows, columns = scaled(rows, columns, side)
        pixels = torch.randn(1, tiles, 3, 4 * side, 4 * side, generator=generator)
        return Shot(
            [IMAGE] * (side * side + rows * (columns + 1)),
            {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])},
        )

    return shot


def _video(name: str) -> Callable[[int, torch.Generator], Shot]:
    side = SIDES[name]
    tokens = FRAMES * math.ceil(side / 2) ** 2 + (name == "onevision")

    def shot(i: int, generator: torch.Generator) -> Shot:
        pixels = torch.randn(1, FRAMES, 3, 4 * side, 4 * side, generator=generator)
        return Shot([VIDEO] * tokens, {"pixel_values_videos": pixels})

    return shot


def _mixed(name: str) -> Callable[[int, torch.Generator], Shot]:
    """Videos and images in turn."""
    image, video = _tiled(name), _video(name)
    return lambda i, generator: (image if i % 2 else video)(i, generator)


def _pair(i: int, generator: torch.Generator) -> Shot:
    """Two images of a sample with several: one tile each, ended by a newline."""
    side = SIDES["onevision"]
    pixels = torch.randn(2, 1, 3, 4 * side, 4 * side, generator=generator)
    sizes = torch.tensor([SIZES[(2 * i + k) % len(SIZES)] for k in range(2)])
    return Shot([IMAGE] * 2 * (side**2 + 1), {"pixel_values": pixels, "image_sizes": sizes})


def padded(samples: Sequence[Sequence[Shot]]) -> Inputs:
    """The pictures' tensors, with as many tiles as the picture that has most."""

    def tiles(shot: Shot) -> int:
        return shot.tensors["pixel_values"].shape[1] if "pixel_values" in shot.tensors else 0

    most = max(tiles(shot) for sample in samples for shot in sample)

    def filled(shot: Shot) -> Shot:
        if not tiles(shot):
            return shot
        more = pad(shot.tensors["pixel_values"], (0, 0, 0, 0, 0, 0, 0, most - tiles(shot)))
        return Shot(shot.ids, shot.tensors | {"pixel_values": more})

    return joined([[filled(shot) for shot in sample] for sample in samples])


def _counted(samples: Sequence[Sequence[Shot]]) -> Inputs:
    """With the number of images of every sample that has some."""
    counts = [2 * len(sample) for sample in samples if sample]
    return joined(samples) | {"batch_num_images": torch.tensor(counts)}


def _family(name: str, adapter: str, make: Any, shot: Any, **options: Any) -> Family:
    return Family(name, adapter, make, shot, options.pop("collate", padded), **options)


RECIPES = (
    _family("llava_onevision", "llava_onevision", _onevision, _tiled("onevision"), main=True),
    _family("llava_onevision-pairs", "llava_onevision", _onevision, _pair, collate=_counted),
    _family("llava_onevision-video", "llava_onevision", _onevision, _video("onevision")),
    _family("llava_onevision-mixed", "llava_onevision", _onevision, _mixed("onevision")),
    _family("llava_next_video", "llava_next_video", _next_video, _tiled("next_video"), main=True),
    _family("llava_next_video-video", "llava_next_video", _next_video, _video("next_video")),
    _family("llava_next_video-mixed", "llava_next_video", _next_video, _mixed("next_video")),
)


SPECIAL = {IMAGE: "<image>", VIDEO: "<video>"}
NAMES = {"image_token": SPECIAL[IMAGE], "video_token": SPECIAL[VIDEO]}
MARKS = {"image": f"{SPECIAL[IMAGE]}\n", "video": f"{SPECIAL[VIDEO]}\n"}


def _onevision_processor(tokenizer: Any, template: str) -> Any:
    import transformers

    side = SIDES["onevision"]
    size = {"height": 4 * side, "width": 4 * side}
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=pinpoints(4 * side)
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(
            size=size, do_sample_frames=False
        ),
        num_image_tokens=side**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{MOST}",
        chat_template=template,
    )


def _next_video_processor(tokenizer: Any, template: str) -> Any:
    import transformers

    tile = 4 * SIDES["next_video"]
    options = {"size": {"shortest_edge": tile}, "crop_size": {"height": tile, "width": tile}}
    return transformers.LlavaNextVideoProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            image_grid_pinpoints=pinpoints(tile), **options
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaNextVideoVideoProcessor(
            do_sample_frames=False, **options
        ),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


KITS = (
    Kit("llava_onevision", SPECIAL, MARKS, _onevision_processor, NAMES),
    Kit("llava_next_video", SPECIAL, MARKS, _next_video_processor, NAMES),
)
