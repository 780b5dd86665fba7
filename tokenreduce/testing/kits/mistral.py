"""Processors of Mistral 3 and of LLaVA with a Pixtral tower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenreduce.testing.families.family import END, IMAGE
from tokenreduce.testing.families.mistral import BREAK, MERGE, PATCH, SIDE
from tokenreduce.testing.kits.kit import Kit

TOKENS = {IMAGE: "[IMG]", BREAK: "[IMG_BREAK]", END: "[IMG_END]"}


def _make(side: int, merge: int) -> Callable[[Any, str], Any]:
    def make(tokenizer: Any, template: str) -> Any:
        import transformers

        images = transformers.PixtralImageProcessor(
            size={"longest_edge": side}, patch_size=PATCH * merge
        )
        return transformers.PixtralProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=PATCH,
            spatial_merge_size=merge,
            chat_template=template,
        )

    return make


KITS = (
    Kit("mistral3", TOKENS, {"image": "[IMG]"}, _make(SIDE, MERGE)),
    Kit("llava-pixtral", TOKENS, {"image": "[IMG]"}, _make(SIDE // 2, 1)),
)
