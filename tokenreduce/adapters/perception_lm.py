"""Perception LM (transformers `PerceptionLMForConditionalGeneration`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.adapters.tiles import tile, whole
from tokenreduce.geometry import Picture


@adapters.register("perception_lm")
class PerceptionLM(Adapter):
    """Perception LM: a thumbnail, then the tiles of an image, or a video's frames; pooled patches.

    Tile 0 is the thumbnail, or the only view of an image; the tiles count from 1.
    """

    families: ClassVar[frozenset[str]] = frozenset({"perception_lm"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """An image of its views, laid out as the thumbnail shows."""
        pixels, tokens = call["pixel_values"], output.pooler_output.shape[1]
        return [whole([tile(view, tokens) for view in image], 0) for image in pixels]

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square grid per frame; the encoder of images gets the frames in place of tiles."""
        side = math.isqrt(output.pooler_output.shape[1])
        return [Picture.grid(side, side, frames=len(video)) for video in call["pixel_values"]]
