"""InternVL 2.5 and 3 (transformers `InternVLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.adapters.tiles import tile, whole
from tokenreduce.geometry import Picture


@adapters.register("internvl")
class InternVL(Adapter):
    """InternVL 2.5 and 3: an image is a run of square tiles, its thumbnail the last of them.

    Tile 0 is the thumbnail, or the only view of an image that is not cut; the tiles of the image
    count from 1. A frame of a video is an image like any other.
    """

    families: ClassVar[frozenset[str]] = frozenset({"internvl"})
    runs: ClassVar[bool] = True

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square grid per tile; the model is not told which tiles are of one image."""
        views = zip(call["pixel_values"], output.pooler_output, strict=True)
        return [tile(pixels, len(features)) for pixels, features in views]

    def joined(self, parts: Sequence[Picture]) -> Picture:
        """The image that a run of tiles is of, laid out as its thumbnail shows."""
        return whole(parts, -1)
