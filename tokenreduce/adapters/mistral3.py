"""Mistral Small 3.1 and 3.2 (transformers `Mistral3ForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.geometry import Picture


@adapters.register("mistral3")
class Mistral3(Adapter):
    """Mistral Small 3.1 and 3.2: a grid of the image's own shape; its line breaks are text."""

    families: ClassVar[frozenset[str]] = frozenset({"mistral3"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per image, from its size in pixels; a token is a square of merged patches."""
        side = base.vision_tower.patch_size * base.config.spatial_merge_size
        found = []
        for (height, width), features in zip(
            call["image_sizes"], output.pooler_output, strict=True
        ):
            rows, columns = int(height) // side, int(width) // side
            fits = rows * columns == len(features)
            found.append(Picture.grid(rows, columns) if fits else Picture.unknown(len(features)))
        return found
