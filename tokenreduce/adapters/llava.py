"""LLaVA-1.5 (transformers `LlavaForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.geometry import Picture


@adapters.register("llava")
class Llava(Adapter):
    """LLaVA-1.5: one square grid of patches per image; Pixtral towers have a grid per image."""

    families: ClassVar[frozenset[str]] = frozenset({"llava"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per image; Pixtral's from `image_sizes` in pixels, CLIP's a square."""
        patch = base.config.vision_config.patch_size
        sizes = call.get("image_sizes")
        found = []
        for i, image in enumerate(output.pooler_output):
            if sizes is not None:
                height, width = (int(side) // patch for side in sizes[i])
                if height * width == len(image):
                    found.append(Picture.grid(height, width))
                    continue
            found.append(Picture.unknown(len(image)))
        return found
