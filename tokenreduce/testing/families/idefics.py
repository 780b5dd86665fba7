"""Idefics3 and SmolVLM, with their own towers and a Llama decoder: images whole and in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    START,
    WORDS,
    Family,
    Inputs,
    Shot,
    build,
    text,
    vision,
)
from tokenreduce.testing.families.kit import Kit

SIDE, PATCH, SHUFFLE = 24, 4, 2
"""Pixels of a tile and of a patch; SHUFFLE x SHUFFLE patches are shuffled into a token."""
TOKENS = (SIDE // (PATCH * SHUFFLE)) ** 2
GRIDS = ((1, 2), (0, 0), (2, 2))
"""Rows and columns of tiles of the images, one after the other; 0 where an image is not cut."""
LINE, FAKE, WHOLE = 3, START, END
"""Ids of a line break, `<fake_token_around_image>` and `<global-img>`."""
MOST = 4
"""Tiles in a row or in a column, at most; ids of their tags come after the words."""


def tag(row: int, column: int) -> int:
    """The id of `<row_i_col_j>`, which count from 1."""
    return WORDS + MOST * (row - 1) + column - 1


def _make(kind: str) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        tower = getattr(transformers, f"{kind}VisionConfig")
        config = getattr(transformers, f"{kind}Config")(
            vision_config=tower(**vision(SIDE)),
            text_config=transformers.LlamaConfig(**text(vocab_size=WORDS + MOST**2)),
            image_token_id=IMAGE,
            scale_factor=SHUFFLE,
            tie_word_embeddings=False,
        )
        return build(f"{kind}ForConditionalGeneration", config, attention)

    return make


def shown(rows: int, columns: int) -> list[int]:
    """The tokens of an image cut into `rows` x `columns` tiles, or of one that is not."""
    ids = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            ids += [FAKE, tag(row, column), *[IMAGE] * TOKENS]
        ids.append(LINE)
    if rows:
        ids.append(LINE)
    return [*ids, FAKE, WHOLE, *[IMAGE] * TOKENS, FAKE]


def _cut(i: int, generator: torch.Generator) -> Shot:
    rows, columns = GRIDS[i % len(GRIDS)]
    pixels = torch.randn(1, rows * columns + 1, 3, SIDE, SIDE, generator=generator)
    return Shot(shown(rows, columns), {"pixel_values": pixels})


def _frames(i: int, generator: torch.Generator) -> Shot:
    """A video: every frame an image that is not cut, after its time."""
    n = 2 + i % 2
    pixels = torch.randn(1, n, 3, SIDE, SIDE, generator=generator)
    ids = [token for k in range(n) for token in (20, 10 + k, *shown(0, 0))]
    return Shot(ids, {"pixel_values": pixels})


def per_sample(samples: Sequence[Sequence[Shot]]) -> Inputs:
    """The tiles of every sample, filled up with black ones: (b, tiles, 3, height, width)."""
    blank = torch.zeros(1, 0, 3, SIDE, SIDE)
    rows = [
        torch.cat([blank, *(shot.tensors["pixel_values"] for shot in shots)], dim=1)[0]
        for shots in samples
    ]
    return {"pixel_values": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}


RECIPES = (
    Family("idefics3", "idefics3", _make("Idefics3"), _cut, per_sample, main=True),
    Family("smolvlm", "smolvlm", _make("SmolVLM"), _cut, per_sample, main=True),
    Family("smolvlm-video", "smolvlm", _make("SmolVLM"), _frames, per_sample),
)


IDS = {LINE: "\n", FAKE: "<fake_token_around_image>", WHOLE: "<global-img>", IMAGE: "<image>"}
TAGS = {
    tag(row, column): f"<row_{row}_col_{column}>"
    for row in range(1, MOST + 1)
    for column in range(1, MOST + 1)
}
MARKS = {"image": "<image>", "video": "<video>"}


def _processor(kind: str) -> Callable[[Any, str], Any]:
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
    Kit("idefics3", IDS | TAGS, MARKS, _processor("Idefics3")),
    Kit("smolvlm", IDS | TAGS, MARKS, _processor("SmolVLM")),
)
