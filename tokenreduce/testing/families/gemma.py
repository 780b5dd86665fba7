"""Gemma 3 and PaliGemma, with a SigLIP tower and a Gemma decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    LAYERS,
    START,
    WIDTH,
    Family,
    Inputs,
    Shot,
    build,
    text,
    vision,
)
from tokenreduce.testing.families.kit import Kit

SIDE = 32
"""Pixels of Gemma 3's pictures: 8 x 8 patches, pooled to 4 x 4 tokens."""
TOKENS = 16
SQUARE = 20
"""Pixels of PaliGemma's pictures: 5 x 5 patches."""
PROMPT = 3
"""Words of PaliGemma's prompt; what follows is the answer."""
WINDOW = 12
"""Tokens that a sliding layer sees; less than a picture has."""


def _gemma3(**options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        layers = [f"{('sliding', 'full')[i % 2]}_attention" for i in range(LAYERS)]
        decoder = text(
            head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=layers
        )
        config = transformers.Gemma3Config(
            text_config=transformers.Gemma3TextConfig(**decoder | options),
            vision_config=transformers.SiglipVisionConfig(**vision(SIDE, vision_use_head=False)),
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            mm_tokens_per_image=TOKENS,
            tie_word_embeddings=False,
        )
        return build("Gemma3ForConditionalGeneration", config, attention)

    return make


def _paligemma(generation: str, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        decoder = getattr(transformers, f"{generation}Config")(**text(head_dim=8) | options)
        tower = vision(SQUARE, vision_use_head=False, projection_dim=WIDTH)
        config = transformers.PaliGemmaConfig(
            text_config=decoder,
            vision_config=transformers.SiglipVisionConfig(**tower),
            image_token_index=IMAGE,
            projection_dim=WIDTH,
            hidden_size=WIDTH,
            tie_word_embeddings=False,
        )
        return build("PaliGemmaForConditionalGeneration", config, attention)

    return make


def _framed(i: int, generator: torch.Generator) -> Shot:
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=generator)
    return Shot([START, *[IMAGE] * TOKENS, END], {"pixel_values": pixels})


def _bare(i: int, generator: torch.Generator) -> Shot:
    pixels = torch.randn(1, 3, SQUARE, SQUARE, generator=generator)
    return Shot([IMAGE] * (SQUARE // 4) ** 2, {"pixel_values": pixels})


def _pictured(ids: Tensor) -> Inputs:
    """1 at the tokens that see the others of their picture in both directions."""
    return {"token_type_ids": (ids == IMAGE).long()}


def _answering(ids: Tensor) -> Inputs:
    """0 in the prompt, whose tokens all see each other; it ends PROMPT tokens after `<bos>`."""
    start = (ids == 1).long().argmax(dim=1, keepdim=True)
    return {"token_type_ids": (torch.arange(ids.shape[1]) > start + PROMPT).long()}


RECIPES = (
    Family("gemma3", "gemma3", _gemma3(), _framed, marks=_pictured, main=True),
    Family(
        "paligemma",
        "paligemma",
        _paligemma("Gemma", num_key_value_heads=1),
        _bare,
        marks=_answering,
        main=True,
        pictures_first=True,
    ),
    Family(
        "paligemma2",
        "paligemma",
        _paligemma("Gemma2", query_pre_attn_scalar=4, sliding_window=16),
        _bare,
        marks=_answering,
        pictures_first=True,
        attentions=("eager",),
    ),
)


NAMES = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
MARKED = {START: NAMES["boi_token"], END: NAMES["eoi_token"], IMAGE: NAMES["image_token"]}


def _gemma3_processor(tokenizer: Any, template: str) -> Any:
    import transformers

    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
        chat_template=template,
    )


def _paligemma_processor(tokenizer: Any, template: str) -> Any:
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
    Kit("gemma3", MARKED, {"image": NAMES["boi_token"]}, _gemma3_processor, NAMES),
    Kit("paligemma", {IMAGE: "<image>", 3: "\n"}, {"image": "<image>"}, _paligemma_processor),
    Kit("paligemma2", {IMAGE: "<image>", 3: "\n"}, {"image": "<image>"}, _paligemma_processor),
)
