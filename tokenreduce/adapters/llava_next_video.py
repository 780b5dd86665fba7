"""LLaVA-NeXT-Video (transformers `LlavaNextVideoForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import tokenreduce.engine.call as spelled
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.llava import clip_merging, clip_tower
from tokenreduce.adapters.llava_next import packed_pictures
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import WHOLE, Box, Picture
from tokenreduce.tower import Part, Tower


@adapters.register("llava_next_video")
class LlavaNextVideo(Adapter):
    """LLaVA-NeXT-Video: images like LLaVA-NeXT's; frames of pooled patches without newlines."""

    families: ClassVar[frozenset[str]] = frozenset({"llava_next_video"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "pack_image_features:vision_feature_select_strategy",
        "config.spatial_pool_stride",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """Coordinates traced through the model's own packing, token by token."""
        return packed_pictures(base, call, output)

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per frame; pooling leaves out what is less than a window at the far sides."""
        config = base.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        pooled = side // config.spatial_pool_stride
        seen = pooled * config.spatial_pool_stride / side
        found, first = [], 0
        for video, features in zip(spelled.video_of(call), output.pooler_output, strict=True):
            grid = Picture.grid(pooled, pooled, frames=len(video), within=(0.0, 0.0, seen, seen))
            clip = grid.over(side, side, config.spatial_pool_stride, first)
            tokens = features.shape[:-1].numel()  # frame by frame before transformers 5.23
            found.append(clip if len(clip) == tokens else Picture.unknown(tokens))
            first += len(video) * side**2
        return found

    def tower(self, base: Part) -> Tower | None:
        """CLIP or SigLIP."""
        return clip_tower(base)

    def merging(self, base: Part) -> frozenset[str]:
        """As many tokens as ever: those of a video are pooled patches of several groups."""
        return clip_merging(base) & {"expanded"}

    def view(self, processor: Any, width: int, height: int) -> Box:
        """All of it: the whole image is stretched, and the tiles' padding is cut off again."""
        return WHOLE
