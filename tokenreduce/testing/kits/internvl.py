"""Processor of InternVL."""

from __future__ import annotations

from typing import Any

from tokenreduce.testing.families.family import END, IMAGE, START, VIDEO
from tokenreduce.testing.families.internvl import SIDE, TOKENS
from tokenreduce.testing.kits.kit import Kit

NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
IDS = dict(zip((START, END, IMAGE, VIDEO), NAMES.values(), strict=True))


def _make(tokenizer: Any, template: str) -> Any:
    import transformers

    size = {"height": SIDE, "width": SIDE}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, max_patches=6
        ),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size, do_sample_frames=False),
        image_seq_length=TOKENS,
        chat_template=template,
    )


_MARKS = {"image": f"{IDS[IMAGE]}\n", "video": f"{IDS[VIDEO]}\n"}

KITS = (Kit("internvl", IDS, _MARKS, _make, NAMES),)
