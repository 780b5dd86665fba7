"""LLaVA-NeXT / LLaVA-1.6 (transformers `LlavaNextForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.adapters.anyres import traced
from tokenreduce.geometry import WHOLE, Box, Picture


@adapters.register("llava_next")
class LlavaNext(Adapter):
    """LLaVA-NeXT: the whole image, then a high-resolution grid with a newline after each row.

    Tile 0 is the whole image at low resolution; tile 1 the grid of tiles, joined and with its
    padding cut off, as transformers' `pack_image_features` lays it out.
    """

    families: ClassVar[frozenset[str]] = frozenset({"llava_next"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """Coordinates traced through the model's own packing, token by token."""
        return packed_pictures(base, call, output)

    def view(self, processor: Any, width: int, height: int) -> Box:
        """All of it: the whole image is stretched, and the tiles' padding is cut off again."""
        return WHOLE


def packed_pictures(base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
    """The pictures of one encoder call of LLaVA-NeXT's kind."""
    pack = partial(base.pack_image_features, vision_feature_select_strategy="default")
    found = []
    for size, features in zip(call["image_sizes"], output.pooler_output, strict=True):
        picture = traced(base, size, pack)
        fits = len(picture) == len(features)
        found.append(picture if fits else Picture.unknown(len(features)))
    return found
