"""Geometry against pixels: paint a part of a picture, see which visual tokens change.

The layers of a vision tower are made to add nothing (output projections of zero), so that a token's
features depend on its own patches alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.testing.models import FAMILIES

OUTPUTS = ("out_proj", "o_proj", "projection_layer", "attn.proj.", "fc2", "down_proj")
"""Names of the projections by which the layers of a tower add to its features."""

Encode = Callable[[Any], tuple[Tensor, tr.Picture]]


def local(family: str) -> Any:
    """The tiny model of a recipe, with a vision tower that mixes no patches."""
    model = FAMILIES[family].model()
    base = model.model
    tower = base.vision_tower if hasattr(base, "vision_tower") else base.vision_model
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if any(part in name for part in OUTPUTS):
                weight.zero_()
    return model


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) a picture whose parts can be told apart: smooth noise."""
    noise = np.random.default_rng(seed).random((1, 3, 7, 7)).astype(np.float32)
    big = torch.nn.functional.interpolate(torch.from_numpy(noise), (height, width), mode="bicubic")
    return (big[0].clamp(0, 1) * 200).permute(1, 2, 0).to(torch.uint8).numpy()


def check(encode: Encode, blank: np.ndarray, least: int = 1, rounds: int = 5) -> None:
    """Paints parts of `blank` (…, height, width, 3), and asks which tokens change.

    A token changes if the middle of its box is painted, and does not if no part of twice its box
    is: a cell may be off by the rounding of a resize, and pooling may look beyond it.

    Args:
        encode: the features (n, d) of a picture and its geometry.
        blank: one picture, or the frames of a video, of which one is painted.
        least: pixels that a painted part has on a side at least.
        rounds: parts that are painted, one after the other.
    """
    before, picture = encode(blank)
    assert len(picture) == len(before)
    *frames, height, width, _ = blank.shape
    shown = ~picture.separator & (picture.box[:, 2] > picture.box[:, 0])
    generator = np.random.default_rng(1)
    hits = 0
    for turn in range(rounds):
        down, across = max(least, height // 5), max(least, width // 5)
        top = int(generator.random() * (height - down))
        left = int(generator.random() * (width - across))
        painted = blank.copy()
        frame = turn % frames[0] if frames else 0
        target = painted[frame] if frames else painted
        target[top : top + down, left : left + across] = 255
        after, again = encode(painted)
        assert torch.equal(picture.box, again.box)
        changed = (after - before).abs().amax(dim=1) > 1e-6
        assert not changed[picture.separator].any()
        here = shown & (picture.frame == frame)
        assert not changed[shown & ~here].any(), "changed in another frame"
        paint = (left / width, top / height, (left + across) / width, (top + down) / height)
        inside, near = (overlap(picture.box, paint, by) for by in (-0.5, 0.5))
        for tile in picture.tile.unique().tolist():
            mine = here & (picture.tile == tile)
            assert changed[mine & inside].all(), f"tile {tile}: painted, but unchanged"
            assert not changed[mine & ~near].any(), f"tile {tile}: changed, but not painted"
        hits += int(changed[here].sum())
    assert hits > rounds


def overlap(box: Tensor, paint: tuple[float, ...], by: float) -> Tensor:
    """Whether boxes, grown by a share of their own size on every side, overlap the paint."""
    left, top, right, bottom = paint
    margin = (box[:, 2:] - box[:, :2]) * by
    low, high = box[:, :2] - margin, box[:, 2:] + margin
    return (low[:, 0] < right) & (high[:, 0] > left) & (low[:, 1] < bottom) & (high[:, 1] > top)
