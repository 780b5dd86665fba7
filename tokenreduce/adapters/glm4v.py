"""GLM-4.1V (transformers `Glm4vForConditionalGeneration`)."""

from __future__ import annotations

from typing import Any, ClassVar

from tokenreduce.adapter import IMAGE, VIDEO, adapters
from tokenreduce.adapters.qwen2_vl import Qwen2VL


@adapters.register("glm4v")
class Glm4v(Qwen2VL):
    """GLM-4.1V: Qwen2-VL's grids; the frames of a video take the places of images.

    Videos have the placeholders of images, so that a prompt holds either of them (transformers
    refuses both in one call). Rotary embeddings turn neighbouring numbers of a head.
    """

    families: ClassVar[frozenset[str]] = frozenset({"glm4v"})
    interleaved: ClassVar[bool] = True

    def visual_ids(self, config: Any) -> dict[str, int]:
        """The image's placeholder for both kinds; what a pass encodes says which it is."""
        return {IMAGE: config.image_token_id, VIDEO: config.image_token_id}
