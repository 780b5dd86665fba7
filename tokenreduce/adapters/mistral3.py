"""Mistral Small 3.1 and 3.2 (transformers `Mistral3ForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.llava import pixtral_tower
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture
from tokenreduce.tower import Part, Tower


@adapters.register("mistral3")
class Mistral3(Adapter):
    """Mistral Small 3.1 and 3.2: a grid of the image's own shape; its line breaks are text."""

    families: ClassVar[frozenset[str]] = frozenset({"mistral3"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = ("config.spatial_merge_size", "vision_tower.patch_size")

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per image, from its size in pixels; a token is a square of merged patches."""
        merge, patch = base.config.spatial_merge_size, base.vision_tower.patch_size
        side, found, first = patch * merge, [], 0
        for (height, width), features in zip(
            call["image_sizes"], output.pooler_output, strict=True
        ):
            rows, columns = int(height) // side, int(width) // side
            down, across = int(height) // patch, int(width) // patch
            picture = Picture.grid(rows, columns).over(down, across, merge, first)
            fits = rows * columns == len(features)
            found.append(picture if fits else Picture.unknown(len(features)))
            first += down * across
        return found

    def tower(self, base: Part) -> Tower | None:
        """Pixtral."""
        return pixtral_tower(base)

    def merging(self, base: Part) -> frozenset[str]:
        """A token is made of a square of patches, whose groups may differ."""
        return frozenset({"expanded"})
