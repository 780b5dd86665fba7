"""GLM-4.1V, with images or with videos: transformers refuses both in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    START,
    VIDEO,
    WORDS,
    Family,
    Inputs,
    Shot,
    build,
    text,
)
from tokenreduce.testing.families.kit import Kit
from tokenreduce.testing.families.qwen_vl import (
    CLIPS,
    ROPE,
    SIZE,
    image,
    options,
    patches,
    tokens,
    tower,
)

OPEN, CLOSE = 3, 4
"""Ids before and after a video."""


def _make(attention: str) -> nn.Module:
    import transformers

    config = transformers.Glm4vConfig(
        text_config=text(
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_parameters=ROPE | {"partial_rotary_factor": 0.5},
        ),
        vision_config=tower(image_size=32),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=OPEN,
        video_end_token_id=CLOSE,
        tie_word_embeddings=False,
    )
    return build("Glm4vForConditionalGeneration", config, attention)


def _video(i: int, generator: torch.Generator) -> Shot:
    """A video: every frame as an image is, with the image's placeholder, then a time stamp."""
    grid, ids = CLIPS[i % len(CLIPS)], [OPEN]
    for frame in range(grid[0]):
        ids += [START, *[IMAGE] * tokens(grid), END, WORDS - 1 - frame]
    tensors = {
        "pixel_values_videos": patches(grid, generator),
        "video_grid_thw": torch.tensor([grid]),
    }
    return Shot([*ids, CLOSE], tensors)


def _types(ids: Tensor) -> Inputs:
    """What every token is of: 1 an image, 2 a video (between its ids), 0 text."""
    inside = (ids == OPEN).long().cumsum(1) > (ids == CLOSE).long().cumsum(1)
    return {"mm_token_type_ids": (ids == IMAGE).long() * (1 + inside.long())}


RECIPES = (
    Family("glm4v", "glm4v", _make, image, marks=_types, main=True, own_positions=True),
    Family("glm4v-video", "glm4v", _make, _video, marks=_types, own_positions=True),
)


SPECIAL = {
    OPEN: "<|begin_of_video|>",
    CLOSE: "<|end_of_video|>",
    START: "<|begin_of_image|>",
    END: "<|end_of_image|>",
    IMAGE: "<|image|>",
    VIDEO: "<|video|>",
}
MARKS = {
    "image": f"{SPECIAL[START]}{SPECIAL[IMAGE]}{SPECIAL[END]}",
    "video": f"{SPECIAL[OPEN]}{SPECIAL[VIDEO]}{SPECIAL[CLOSE]}",
}


def _processor(tokenizer: Any, template: str) -> Any:
    import transformers

    most = 8 * SIZE["longest_edge"]  # the pixels of a whole video are counted, an image is one of 2
    return transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(**options(most)),
        tokenizer=tokenizer,
        video_processor=transformers.Glm4vVideoProcessor(**options(most), do_sample_frames=False),
        chat_template=template,
    )


KITS = (Kit("glm4v", SPECIAL, MARKS, _processor),)
