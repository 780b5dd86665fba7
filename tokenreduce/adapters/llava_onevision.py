"""LLaVA-OneVision (transformers `LlavaOnevisionForConditionalGeneration`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch

import tokenreduce.engine.call as spelled
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.anyres import tiles, traced
from tokenreduce.adapters.llava import clip_merging, clip_tower
from tokenreduce.adapters.llava_next import patches_of
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import WHOLE, Box, Picture
from tokenreduce.tower import Part, Tower


@adapters.register("llava_onevision")
class LlavaOnevision(Adapter):
    """LLaVA-OneVision: one image in tiles, several of one tile each, videos of pooled frames.

    A single image has LLaVA-NeXT's layout, scaled down where its grid is too large. Each of several
    images is padded to a square and ends with one newline. A video ends with one newline, too.
    """

    families: ClassVar[frozenset[str]] = frozenset({"llava_onevision"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "pack_image_features:vision_aspect_ratio",
        "config.vision_aspect_ratio",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """Coordinates traced through the model's own packing, token by token."""
        most = call.get("vision_aspect_ratio") or base.config.vision_aspect_ratio
        pack = partial(base.pack_image_features, vision_aspect_ratio=most)
        sizes = call["image_sizes"]
        of_samples = call.get("batch_num_images")
        if of_samples is None:
            tiled = [True] * len(sizes)
        else:
            tiled = [int(n) == 1 for n in of_samples for _ in range(int(n))]
        found, first = [], 0
        for size, whole, features in zip(sizes, tiled, output.pooler_output, strict=True):
            picture = traced(base, size, pack, tiled=whole).shifted(first)
            if len(picture) != len(features):
                picture = Picture.unknown(len(features))
            elif not whole:
                picture = picture.inside(_square(*map(int, size)))
            found.append(picture)
            first += (1 + math.prod(tiles(base.config, size)) * whole) * patches_of(base)
        return found

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per frame, of half the patches on a side, and a newline after the last one."""
        vision = base.config.vision_config
        whole = vision.image_size // vision.patch_size
        side = math.ceil(whole / 2)
        found, first = [], 0
        for video, features in zip(spelled.video_of(call), output.pooler_output, strict=True):
            frames = Picture.grid(side, side, frames=len(video))
            clip = Picture.join([frames, _newline(frames)]).over(whole, whole, 2, first)
            # up to transformers 5.17 the model joins the newline to what its encoder has returned
            known = len(features) in (len(frames), len(clip))
            found.append(clip if known else Picture.unknown(len(features)))
            first += len(video) * whole**2
        return found

    def tower(self, base: Part) -> Tower | None:
        """SigLIP; a token of a picture that was scaled down is of the nearest patch."""
        return clip_tower(base)

    def merging(self, base: Part) -> frozenset[str]:
        """As many tokens as ever: pictures are scaled down and videos pooled, across groups."""
        return clip_merging(base) & {"expanded"}

    def view(self, processor: Any, width: int, height: int) -> Box:
        """All of it: boxes are of the original already, whether it was padded or stretched."""
        return WHOLE


def _square(height: int, width: int) -> Box:
    """The square around the middle of a picture, as fractions of the picture."""
    side = max(height, width)
    x, y = (side - width) / 2 / width, (side - height) / 2 / height
    return -x, -y, 1 + x, 1 + y


def _newline(frames: Picture) -> Picture:
    """The token that ends the last row of a video."""
    last = frames[len(frames) - 1 :]
    return Picture(
        last.frame,
        last.tile,
        last.row,
        last.column + 1,
        torch.ones(1, dtype=torch.bool),
        torch.zeros(1, 4),
    )
