"""Whole inputs of a model without its processor: one picture of noise between words.

Only for the families whose sizes presets carry (`model.shape`); others bring a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapter import adapter_for

Inputs = dict[str, Tensor]
SIDE = 24
"""Visual tokens along a side of the picture, where the family leaves it open."""


def noise(model: Any, text: int, seed: int = 0) -> Inputs | None:
    """Inputs of one sample with one picture; None for a family that is not known here.

    text: text tokens of the prompt; seed: of the pixels and words.
    """
    config = model.config
    make = FAMILIES.get(config.model_type)
    if make is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    number, tensors = make(config, generator)
    words = torch.randint(10, 99, (1, text), generator=generator)
    before = text * 35 // 64
    image = torch.full((1, number), adapter_for(model).visual_ids(config)["image"])
    ids = torch.cat([words[:, :before], image, words[:, before:]], dim=1)
    return {
        name: x.to(model.device, model.dtype if x.is_floating_point() else None)
        for name, x in ({"input_ids": ids} | tensors).items()
    }


def _square(config: Any, generator: torch.Generator) -> tuple[int, Inputs]:
    """LLaVA-1.5: one view."""
    vision = config.vision_config
    size = vision.image_size
    pixels = torch.randn(1, 3, size, size, generator=generator)
    return (size // vision.patch_size) ** 2, {"pixel_values": pixels}


def _tiled(config: Any, generator: torch.Generator) -> tuple[int, Inputs]:
    """LLaVA-NeXT: a square of two by two tiles after the whole; every row ends with a newline."""
    vision = config.vision_config
    size, side = vision.image_size, vision.image_size // vision.patch_size
    pixels = torch.randn(1, 5, 3, size, size, generator=generator)
    number = side * side + 2 * side * (2 * side + 1)
    return number, {
        "pixel_values": pixels,
        "image_sizes": torch.tensor([[2 * size, 2 * size]]),
    }


def _patches(config: Any, generator: torch.Generator) -> tuple[int, Inputs]:
    """Qwen2.5-VL: patches of two equal frames in one row."""
    vision = config.vision_config
    rows = SIDE * vision.spatial_merge_size
    numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(rows * rows, numbers, generator=generator)
    return SIDE * SIDE, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, rows]])}


FAMILIES: Mapping[str, Callable[[Any, torch.Generator], tuple[int, Inputs]]] = {
    "llava": _square,
    "llava_next": _tiled,
    "qwen2_5_vl": _patches,
}
