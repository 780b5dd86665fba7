"""Perception LM, with a Perception Encoder of timm and a Llama decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokenreduce.testing.families.family import IMAGE, VIDEO, WIDTH, Family, Shot, build, text
from tokenreduce.testing.families.kit import Kit

SIDE = 32
"""Pixels of a view: 8 x 8 patches, of which 2 x 2 are pooled into a token."""
TOKENS = 16
TILES = 2
"""Views of every image, the first of them its thumbnail; a call takes images of as many views."""
FRAMES = 3


def _make(attention: str) -> nn.Module:
    import transformers

    tower = {
        "embed_dim": WIDTH,
        "img_size": [SIDE, SIDE],
        "patch_size": 4,
        "depth": 2,
        "num_heads": 4,
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.5,
        "ref_feat_shape": [SIDE // 4, SIDE // 4],
    }
    config = transformers.PerceptionLMConfig(
        vision_config=transformers.TimmWrapperConfig(
            architecture="vit_pe_core_tiny_patch16_384", model_args=tower, do_pooling=True
        ),
        text_config=transformers.LlamaConfig(**text()),
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
    )
    kinds: str | dict[str, str] = attention
    if not transformers.TimmWrapperModel._supports_sdpa:  # before transformers 5.16
        kinds = {"": attention, "vision_config": "eager"}
    return build("PerceptionLMForConditionalGeneration", config, kinds)


def _image(i: int, generator: torch.Generator) -> Shot:
    pixels = torch.randn(1, TILES, 3, SIDE, SIDE, generator=generator)
    return Shot([IMAGE] * (TILES * TOKENS), {"pixel_values": pixels})


def _video(i: int, generator: torch.Generator) -> Shot:
    pixels = torch.randn(1, FRAMES, 3, SIDE, SIDE, generator=generator)
    return Shot([VIDEO] * (FRAMES * TOKENS), {"pixel_values_videos": pixels})


def _mixed(i: int, generator: torch.Generator) -> Shot:
    """Videos and images in turn."""
    return (_image if i % 2 else _video)(i, generator)


RECIPES = (
    Family("perception_lm", "perception_lm", _make, _image, main=True),
    Family("perception_lm-video", "perception_lm", _make, _video),
    Family("perception_lm-mixed", "perception_lm", _make, _mixed),
)


SPECIAL = {IMAGE: "<|image|>", VIDEO: "<|video|>"}
NAMES = {"image_token": SPECIAL[IMAGE], "video_token": SPECIAL[VIDEO]}


def _processor(tokenizer: Any, template: str) -> Any:
    import transformers

    size = {"height": SIDE, "width": SIDE}
    return transformers.PerceptionLMProcessor(
        image_processor=transformers.PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=4),
        tokenizer=tokenizer,
        video_processor=transformers.PerceptionLMVideoProcessor(size=size, do_sample_frames=False),
        patch_size=4,
        pooling_ratio=2,
        chat_template=template,
    )


KITS = (
    Kit(
        "perception_lm",
        SPECIAL,
        {"image": SPECIAL[IMAGE], "video": SPECIAL[VIDEO]},
        _processor,
        NAMES,
    ),
)
