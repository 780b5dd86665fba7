"""Perception LM (transformers `PerceptionLMForConditionalGeneration`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.tiles import from_tiles, tile
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture
from tokenreduce.tower import Part, Rotary, Tower, rotate


class EvaTower(Tower):
    """timm's Eva, whose rotary embedding leaves the class token and turns neighbours of a head."""

    @override
    def attention(self, layer: Part) -> Part:
        return layer.attn

    def projections(self, layer: Part) -> tuple[Part, ...]:
        """One for queries, keys and values."""
        return (layer.attn.qkv,)

    def rotary(self, call: Mapping[str, Any]) -> Rotary | None:
        """From sine and cosine in one table."""
        if call.get("rope") is None:
            return None
        sin, cos = call["rope"].chunk(2, dim=-1)
        return cos, sin

    def turned(self, x: Tensor, rotary: Rotary) -> Tensor:
        """The patches alone."""
        first = x[:, :, : self.classes]
        return torch.cat([first, rotate(x[:, :, self.classes :], rotary, True)], dim=2)


@adapters.register("perception_lm")
class PerceptionLM(Adapter):
    """Perception LM: a thumbnail, then the tiles of an image, or a video's frames; pooled patches.

    Tile 0 is the thumbnail, or the only view of an image; the tiles count from 1.
    """

    families: ClassVar[frozenset[str]] = frozenset({"perception_lm"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "vision_tower.timm_model.patch_embed.grid_size",
        "config.projector_pooling_ratio",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """An image of its views, laid out as the thumbnail shows."""
        tokens, found, first = output.pooler_output.shape[1], [], 0
        for image in call["pixel_values"]:
            views = [tile(view, tokens) for view in image]
            found.append(
                from_tiles([self._over(base, v, first + i) for i, v in enumerate(views)], 0)
            )
            first += len(views)
        return found

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square grid per frame; the encoder of images gets the frames in place of tiles."""
        side = math.isqrt(output.pooler_output.shape[1])
        found, first = [], 0
        for video in call["pixel_values"]:
            grid = Picture.grid(side, side, frames=len(video))
            found.append(self._over(base, grid, first))
            first += len(video)
        return found

    def _over(self, base: Part, picture: Picture, first: int) -> Picture:
        """The patches of a picture whose first view is the `first` of the call."""
        rows, columns = base.vision_tower.timm_model.patch_embed.grid_size
        block = max(int(base.config.projector_pooling_ratio), 1)
        return picture.over(rows, columns, block, first * rows * columns)

    def tower(self, base: Part) -> Tower | None:
        """A Perception Encoder of timm; None where its queries and keys are normed, too."""
        inner = base.vision_tower.timm_model
        plain = [getattr(block.attn, "q_norm", None) for block in inner.blocks]
        if any(type(norm) is not nn.Identity for norm in plain):
            return None
        heads, last = inner.blocks[0].attn.num_heads, len(inner.blocks) - 1
        return EvaTower(inner.blocks, last, heads, inner.num_prefix_tokens, inner.norm)
