"""Processor of GLM-4.1V."""

from __future__ import annotations

from typing import Any

from tokenreduce.testing.families.family import END, IMAGE, START, VIDEO
from tokenreduce.testing.families.glm import CLOSE, OPEN
from tokenreduce.testing.kits.kit import Kit
from tokenreduce.testing.kits.qwen_vl import SIZE, options

TOKENS = {
    OPEN: "<|begin_of_video|>",
    CLOSE: "<|end_of_video|>",
    START: "<|begin_of_image|>",
    END: "<|end_of_image|>",
    IMAGE: "<|image|>",
    VIDEO: "<|video|>",
}
MARKS = {
    "image": f"{TOKENS[START]}{TOKENS[IMAGE]}{TOKENS[END]}",
    "video": f"{TOKENS[OPEN]}{TOKENS[VIDEO]}{TOKENS[CLOSE]}",
}


def _make(tokenizer: Any, template: str) -> Any:
    import transformers

    most = 8 * SIZE["longest_edge"]  # the pixels of a whole video are counted, an image is one of 2
    return transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(**options(most)),
        tokenizer=tokenizer,
        video_processor=transformers.Glm4vVideoProcessor(**options(most), do_sample_frames=False),
        chat_template=template,
    )


KITS = (Kit("glm4v", TOKENS, MARKS, _make),)
