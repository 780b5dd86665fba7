"""Qwen2-VL and Qwen2.5-VL (transformers `Qwen2VL…` and `Qwen2_5_VLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture
from tokenreduce.tower import PackedTower, Part, Rotary, Tower


class FusedTower(PackedTower):
    """A packed tower whose queries, keys and values are one projection."""

    takes_mask: ClassVar[bool] = False

    @override
    def attention(self, layer: Part) -> Part:
        return layer.attn

    @override
    def projections(self, layer: Part) -> tuple[Part, ...]:
        return (layer.attn.qkv,)

    @override
    def key_module(self, layer: Part) -> Part:
        return layer.attn.qkv

    def keys(self, output: Tensor) -> Tensor:
        """(1, h, p, e) before rotation, from (p, 3 h e)."""
        return super().keys(output.chunk(3, dim=-1)[1][None])

    def entrance(self, layer: Part) -> Part:
        """The norm in front of a block's attention."""
        return layer.norm1

    def mlp(self, layer: Part) -> tuple[Part, Part]:
        """The norm in front of a block's MLP, and the MLP."""
        return layer.norm2, layer.mlp


@adapters.register("qwen2_vl")
class Qwen2VL(Adapter):
    """Qwen2-VL and Qwen2.5-VL: a grid per image at its own resolution; a video is a grid per frame.

    A token is a square of patches that the vision tower has merged, and a frame as many pictures
    of the video as its `temporal_patch_size` says. Positions have three axes (time, row, column):
    there is no one number that renumbering could lower.
    """

    families: ClassVar[frozenset[str]] = frozenset({"qwen2_vl", "qwen2_5_vl"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = ("config.vision_config.spatial_merge_size", "visual")
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
        for frames, rows, columns in sizes.tolist():  # sync: once per encoder call
            picture = Picture.grid(rows // merge, columns // merge, frames=frames)
            squares = torch.arange(first, first + len(picture))
            squares = squares if order is None else order[squares]
            patches = squares[:, None] * merge**2 + torch.arange(merge**2)
            found.append(replace(picture, patches=patches))
            first += len(picture)
        return found

    def _order(self, vision: Any, sizes: Any) -> Tensor | None:
        """(squares,) where each square of patches lies in the tower; None: where it was."""
        if getattr(vision, "window_size", None) is None:
            return None
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size
        places, first = [], 0
        for frames, rows, columns in sizes.tolist():  # sync: once per encoder call
            h, w = rows // vision.spatial_merge_size, columns // vision.spatial_merge_size
            square = torch.arange(frames * h * w).view(frames, h, w) + first
            # windows of a frame row by row, and the squares of a window likewise
            windows = (
                square[frame, y : y + side, x : x + side].flatten()
                for frame in range(frames)
                for y in range(0, h, side)
                for x in range(0, w, side)
            )
            places += list(windows)
            first += frames * h * w
        return torch.cat(places).argsort()

    def tables(self, layer: Part, rotary: Rotary) -> Rotary:
        """Up to transformers 5.16 a layer is handed (3, b, l, e): one table for every axis.

        A head's width is divided among the axes, in each of its halves (Qwen2-VL, section 2.1).
        """
        if rotary[0].dim() == 3:
            return rotary
        widths = layer.self_attn.config.rope_parameters["mrope_section"] * 2

        def joined(table: Tensor) -> Tensor:
            parts = torch.split(table, widths, dim=-1)
            return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)

        return joined(rotary[0]), joined(rotary[1])

    def tower(self, base: Part) -> Tower | None:
        """A tower of blocks; its last one sees whole pictures."""
        visual = base.visual
        heads = base.config.vision_config.num_heads
        norm = getattr(visual, "post_layernorm", None)  # GLM's, in front of its convolution
        after = [visual.merger if norm is None else norm]
        between = getattr(visual, "deepstack_merger_list", ())  # Qwen3's
        depth = len(visual.blocks)
        return FusedTower(visual.blocks, depth - 1, heads, 0, norm, [*between, *after])

    @override
    def tower_module(self, base: Part) -> Part:
        return base.visual

    def merging(self, base: Part) -> frozenset[str]:
        """A token is made of a square of patches, whose groups may differ.

        Where some layers see windows, the first must be one of them: nothing may be merged across
        windows that a later layer keeps apart.
        """
        vision = base.config.vision_config
        windows = getattr(vision, "window_size", None) is not None
        whole = windows and 0 in vision.fullatt_block_indexes
        return frozenset() if whole else frozenset({"expanded"})
