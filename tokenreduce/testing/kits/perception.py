"""Processor of Perception LM."""

from __future__ import annotations

from typing import Any

from tokenreduce.testing.families.family import IMAGE, VIDEO
from tokenreduce.testing.families.perception import SIDE
from tokenreduce.testing.kits.kit import Kit

TOKENS = {IMAGE: "<|image|>", VIDEO: "<|video|>"}
NAMES = {"image_token": TOKENS[IMAGE], "video_token": TOKENS[VIDEO]}


def _make(tokenizer: Any, template: str) -> Any:
    import transformers

    size = {"height": SIDE, "width": SIDE}
    return transformers.PerceptionLMProcessor(
        image_processor=transformers.PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=4),
        tokenizer=tokenizer,
        video_processor=transformers.PerceptionLMVideoProcessor(size=size, do_sample_frames=False),
        patch_size=4,
        pooling_ratio=2,
        chat_template=template,
    )


KITS = (
    Kit("perception_lm", TOKENS, {"image": TOKENS[IMAGE], "video": TOKENS[VIDEO]}, _make, NAMES),
)
