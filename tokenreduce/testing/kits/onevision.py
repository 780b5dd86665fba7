"""Processors of LLaVA-OneVision and LLaVA-NeXT-Video."""

from __future__ import annotations

from typing import Any

from tokenreduce.testing.families.family import IMAGE, VIDEO
from tokenreduce.testing.families.onevision import MOST, SIDES, pinpoints
from tokenreduce.testing.kits.kit import Kit

TOKENS = {IMAGE: "<image>", VIDEO: "<video>"}
NAMES = {"image_token": TOKENS[IMAGE], "video_token": TOKENS[VIDEO]}
MARKS = {"image": f"{TOKENS[IMAGE]}\n", "video": f"{TOKENS[VIDEO]}\n"}


def _onevision(tokenizer: Any, template: str) -> Any:
    import transformers

    side = SIDES["onevision"]
    size = {"height": 4 * side, "width": 4 * side}
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=pinpoints(4 * side)
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(
            size=size, do_sample_frames=False
        ),
        num_image_tokens=side**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{MOST}",
        chat_template=template,
    )


def _next_video(tokenizer: Any, template: str) -> Any:
    import transformers

    tile = 4 * SIDES["next_video"]
    options = {"size": {"shortest_edge": tile}, "crop_size": {"height": tile, "width": tile}}
    return transformers.LlavaNextVideoProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            image_grid_pinpoints=pinpoints(tile), **options
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaNextVideoVideoProcessor(
            do_sample_frames=False, **options
        ),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


KITS = (
    Kit("llava_onevision", TOKENS, MARKS, _onevision, NAMES),
    Kit("llava_next_video", TOKENS, MARKS, _next_video, NAMES),
)
