"""Processors of Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

from tokenreduce.testing.families.family import END, IMAGE, START, VIDEO
from tokenreduce.testing.families.qwen_vl import MERGE, PATCH
from tokenreduce.testing.kits.kit import Kit

TOKENS = {
    START: "<|vision_start|>",
    END: "<|vision_end|>",
    IMAGE: "<|image_pad|>",
    VIDEO: "<|video_pad|>",
}
SIZE = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
"""Pixels of an image, at least and at most."""


def options(most: int = SIZE["longest_edge"]) -> dict[str, Any]:
    """How pictures are cut up, for image and video processors."""
    return {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "size": SIZE | {"longest_edge": most},
    }


def _make(kind: str, video: str) -> Any:
    def make(tokenizer: Any, template: str) -> Any:
        import transformers

        return getattr(transformers, f"{kind}Processor")(
            image_processor=transformers.Qwen2VLImageProcessor(**options()),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, f"{video}VideoProcessor")(
                # of a frame; of a whole video where Qwen3-VL counts them
                **options((8 if video == "Qwen3VL" else 1) * SIZE["longest_edge"]),
                do_sample_frames=False,
                cap_pixels_per_frame=False,
            ),
            chat_template=template,
        )

    return make


_FRAMED = {
    kind: f"{TOKENS[START]}{TOKENS[number]}{TOKENS[END]}"
    for kind, number in (("image", IMAGE), ("video", VIDEO))
}

KITS = (
    Kit("qwen2_vl", TOKENS, _FRAMED, _make("Qwen2VL", "Qwen2VL")),
    Kit("qwen2_5_vl", TOKENS, _FRAMED, _make("Qwen2_5_VL", "Qwen2VL")),
    Kit("qwen3_vl", TOKENS, _FRAMED, _make("Qwen3VL", "Qwen3VL")),
)
