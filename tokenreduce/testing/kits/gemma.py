"""Processors of Gemma 3 and PaliGemma."""

from __future__ import annotations

from typing import Any

from tokenreduce.testing.families.gemma import SIDE, SQUARE, TOKENS
from tokenreduce.testing.families.recipe import END, IMAGE, START
from tokenreduce.testing.kits.kit import Kit

NAMES = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
MARKED = {START: NAMES["boi_token"], END: NAMES["eoi_token"], IMAGE: NAMES["image_token"]}


def _gemma3(tokenizer: Any, template: str) -> Any:
    import transformers

    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
        chat_template=template,
    )


def _paligemma(tokenizer: Any, template: str) -> Any:
    """The processor puts `<bos>` itself, after the images; an answer gets token types of 1."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    plain = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    tokenizer.backend_tokenizer.post_processor = plain
    images = transformers.SiglipImageProcessor(size={"height": SQUARE, "width": SQUARE})
    images.image_seq_length = (SQUARE // 4) ** 2
    return transformers.PaliGemmaProcessor(
        image_processor=images, tokenizer=tokenizer, chat_template=template
    )


KITS = (
    Kit("gemma3", MARKED, {"image": NAMES["boi_token"]}, _gemma3, NAMES),
    Kit("paligemma", {IMAGE: "<image>", 3: "\n"}, {"image": "<image>"}, _paligemma),
    Kit("paligemma2", {IMAGE: "<image>", 3: "\n"}, {"image": "<image>"}, _paligemma),
)
