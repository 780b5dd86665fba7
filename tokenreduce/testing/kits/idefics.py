"""Processors of Idefics3 and SmolVLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenreduce.testing.families.family import IMAGE
from tokenreduce.testing.families.idefics import FAKE, LINE, MOST, SIDE, TOKENS, WHOLE, tag
from tokenreduce.testing.kits.kit import Kit

IDS = {LINE: "\n", FAKE: "<fake_token_around_image>", WHOLE: "<global-img>", IMAGE: "<image>"}
TAGS = {
    tag(row, column): f"<row_{row}_col_{column}>"
    for row in range(1, MOST + 1)
    for column in range(1, MOST + 1)
}
MARKS = {"image": "<image>", "video": "<video>"}


def _make(kind: str) -> Callable[[Any, str], Any]:
    def make(tokenizer: Any, template: str) -> Any:
        import transformers

        size = {
            "size": {"longest_edge": MOST * SIDE},
            "max_image_size": {"longest_edge": SIDE},
        }
        parts = {"image_processor": getattr(transformers, f"{kind}ImageProcessor")(**size)}
        if kind == "SmolVLM":
            parts["video_processor"] = transformers.SmolVLMVideoProcessor(
                **size, do_sample_frames=False
            )
        processor = getattr(transformers, f"{kind}Processor")
        return processor(tokenizer=tokenizer, image_seq_len=TOKENS, chat_template=template, **parts)

    return make


KITS = (
    Kit("idefics3", IDS | TAGS, MARKS, _make("Idefics3")),
    Kit("smolvlm", IDS | TAGS, MARKS, _make("SmolVLM")),
)
