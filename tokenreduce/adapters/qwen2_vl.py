"""Qwen2-VL and Qwen2.5-VL (transformers `Qwen2VL…` and `Qwen2_5_VLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.geometry import Picture
from tokenreduce.tokens import TOWER
from tokenreduce.tower import PackedTower, Part, Tower


class FusedTower(PackedTower):
    """A packed tower whose queries, keys and values are one projection."""

    def attention(self, layer: Part) -> Part:
        """By its own name."""
        return layer.attn

    def projections(self, layer: Part) -> tuple[Part, ...]:
        """The one."""
        return (layer.attn.qkv,)


@adapters.register("qwen2_vl")
class Qwen2VL(Adapter):
    """Qwen2-VL and Qwen2.5-VL: a grid per image at its own resolution; a video is a grid per frame.

    A token is a square of patches that the vision tower has merged, and a frame as many pictures
    of the video as its `temporal_patch_size` says. Positions have three axes (time, row, column):
    there is no one number that renumbering could lower.
    """

    families: ClassVar[frozenset[str]] = frozenset({"qwen2_vl", "qwen2_5_vl"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    positions: ClassVar[frozenset[str]] = frozenset({"keep"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per image, from `image_grid_thw`."""
        return self._grids(base, call["image_grid_thw"])

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """The grids of a video's frames, one after the other, from `video_grid_thw`."""
        return self._grids(base, call["video_grid_thw"])

    def _grids(self, base: Part, sizes: Any) -> list[Picture]:
        """From frames, rows and columns in patches (n, 3).

        Patches come in squares of those that become one token, and some layers see windows of
        such squares, for which the tower sorts them.
        """
        vision = base.config.vision_config
        merge, found, first = vision.spatial_merge_size, [], 0
        order = self._order(vision, sizes)
        for frames, rows, columns in sizes.tolist():
            picture = Picture.grid(rows // merge, columns // merge, frames=frames)
            squares = torch.arange(first, first + len(picture))
            squares = squares if order is None else order[squares]
            patches = squares[:, None] * merge**2 + torch.arange(merge**2)
            found.append(replace(picture, patches=patches))
            first += len(picture)
        return found

    def _order(self, vision: Any, sizes: Any) -> Tensor | None:
        """(squares,) where each square of patches stands in the tower; None: where it stood."""
        if getattr(vision, "window_size", None) is None:
            return None
        from transformers.vision_utils import get_vision_window_index

        index: Tensor = get_vision_window_index(
            sizes,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )[0]
        return index.argsort().cpu()

    def tower(self, base: Part) -> Tower | None:
        """A tower of blocks; its last one sees whole pictures."""
        layers = base.visual.blocks
        heads = base.config.vision_config.num_heads
        norm = getattr(base.visual, "post_layernorm", None)
        return FusedTower(layers, len(layers) - 1, heads, 0, norm)
