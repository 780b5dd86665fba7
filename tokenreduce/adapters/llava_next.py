"""LLaVA-NeXT / LLaVA-1.6 (transformers `LlavaNextForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from typing_extensions import override

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.anyres import tiles, traced
from tokenreduce.adapters.llava import clip_merging, clip_tower
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import WHOLE, Box, Picture
from tokenreduce.tower import Part, Tower


@adapters.register("llava_next")
class LlavaNext(Adapter):
    """LLaVA-NeXT: the whole image, then a high-resolution grid with a newline after each row.

    Tile 0 is the whole image at low resolution; tile 1 the grid of tiles, joined and with its
    padding cut off, as transformers' `pack_image_features` lays it out.
    """

    families: ClassVar[frozenset[str]] = frozenset({"llava_next"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "pack_image_features:vision_feature_select_strategy",
        "config.image_grid_pinpoints",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """Coordinates traced through the model's own packing, token by token."""
        return packed_pictures(base, call, output)

    def tower(self, base: Part) -> Tower | None:
        """CLIP or SigLIP."""
        return clip_tower(base)

    @override
    def merging(self, base: Part) -> frozenset[str]:
        return clip_merging(base)

    def view(self, processor: Any, width: int, height: int) -> Box:
        """All of it: the whole image is stretched, and the tiles' padding is cut off again."""
        return WHOLE


def packed_pictures(base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
    """The pictures of one encoder call of LLaVA-NeXT's kind."""
    pack = partial(base.pack_image_features, vision_feature_select_strategy="default")
    found, first = [], 0
    for size, features in zip(call["image_sizes"], output.pooler_output, strict=True):
        picture = traced(base, size, pack)
        fits = len(picture) == len(features)
        found.append(picture.shifted(first) if fits else Picture.unknown(len(features)))
        down, across = tiles(base.config, size)
        first += (1 + down * across) * patches_of(base)
    return found


def patches_of(base: Part) -> int:
    """How many patches one view of an image has."""
    vision = base.config.vision_config
    return int(vision.image_size // vision.patch_size) ** 2
