"""Qwen2-VL and Qwen2.5-VL (transformers `Qwen2VL…` and `Qwen2_5_VLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.geometry import Picture


@adapters.register("qwen2_vl")
class Qwen2VL(Adapter):
    """Qwen2-VL and Qwen2.5-VL: a grid per image at its own resolution; a video is a grid per frame.

    A token is a square of patches that the vision tower has merged, and a frame as many pictures
    of the video as its `temporal_patch_size` says. Positions have three axes (time, row, column):
    there is no one number that renumbering could lower.
    """

    families: ClassVar[frozenset[str]] = frozenset({"qwen2_vl", "qwen2_5_vl"})
    positions: ClassVar[frozenset[str]] = frozenset({"keep"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per image, from `image_grid_thw`."""
        return self._grids(base, call["image_grid_thw"])

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """The grids of a video's frames, one after the other, from `video_grid_thw`."""
        return self._grids(base, call["video_grid_thw"])

    def _grids(self, base: Part, sizes: Any) -> list[Picture]:
        """From frames, rows and columns in patches (n, 3)."""
        merge = base.config.vision_config.spatial_merge_size
        return [
            Picture.grid(rows // merge, columns // merge, frames=frames)
            for frames, rows, columns in sizes.tolist()
        ]
