"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with images, videos, and both in one prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.testing.families.family import (
    END,
    IMAGE,
    START,
    VIDEO,
    WIDTH,
    Family,
    Inputs,
    Shot,
    build,
    text,
)
from tokenreduce.testing.families.kit import Kit

PATCH, MERGE = 4, 2
"""Pixels of a patch's side; patches along a token's side."""
GRIDS = ((1, 6, 8), (1, 8, 6), (1, 4, 12), (1, 8, 8))
"""Frames, rows and columns in patches of the images, one after the other."""
CLIPS = ((2, 6, 8), (3, 4, 6))
"""The same of the videos; a frame stands for two pictures of the video."""
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
"""Of a head's four turns, how many are by time, row and column."""


def tower(**options: Any) -> dict[str, Any]:
    """A vision tower's options, with changes."""
    base = {
        "depth": 2,
        "hidden_size": WIDTH,
        "num_heads": 4,
        "intermediate_size": 48,
        "out_hidden_size": WIDTH,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    return base | options


def _make(kind: str, vision: dict[str, Any], **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            text_config=text(**options),
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
            tie_word_embeddings=False,
        )
        return build(f"{kind}ForConditionalGeneration", config, attention)

    return make


def patches(grid: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(patches, numbers) of one image or video, drawn at random."""
    frames, rows, columns = grid
    return torch.randn(frames * rows * columns, 3 * 2 * PATCH**2, generator=generator)


def tokens(grid: tuple[int, int, int]) -> int:
    """Tokens of one frame."""
    return grid[1] * grid[2] // MERGE**2


def image(i: int, generator: torch.Generator) -> Shot:
    """An image: its tokens between a start and an end."""
    grid = GRIDS[i % len(GRIDS)]
    return Shot(
        [START, *[IMAGE] * tokens(grid), END],
        {"pixel_values": patches(grid, generator), "image_grid_thw": torch.tensor([grid])},
    )


def _video(grid: tuple[int, int, int], generator: torch.Generator) -> Inputs:
    return {
        "pixel_values_videos": patches(grid, generator),
        "video_grid_thw": torch.tensor([grid]),
    }


def _whole(i: int, generator: torch.Generator) -> Shot:
    """A video of Qwen2-VL: all frames in one run."""
    grid = CLIPS[i % len(CLIPS)]
    return Shot([START, *[VIDEO] * grid[0] * tokens(grid), END], _video(grid, generator))


def _timed(i: int, generator: torch.Generator) -> Shot:
    """A video of Qwen2.5-VL, which is also told how many seconds a frame stands for."""
    shot = _whole(i, generator)
    seconds = torch.tensor([1.0, 0.5])[[i % 2]]
    return Shot(shot.ids, shot.tensors | {"second_per_grid_ts": seconds})


def _stamped(i: int, generator: torch.Generator) -> Shot:
    """A video of Qwen3-VL: every frame after a time stamp, between a start and an end."""
    grid, ids = CLIPS[i % len(CLIPS)], []
    for frame in range(grid[0]):
        ids += [10 + frame, 20, START, *[VIDEO] * tokens(grid), END]
    return Shot(ids, _video(grid, generator))


def _mixed(video: Callable[..., Shot]) -> Callable[[int, torch.Generator], Shot]:
    """Videos and images in turn."""
    return lambda i, generator: (image if i % 2 else video)(i, generator)


def types(ids: Tensor) -> Inputs:
    """What every token is of: 1 an image, 2 a video, 0 text."""
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}


def _family(
    name: str, adapter: str, make: Any, shot: Callable[..., Shot], main: bool = False
) -> Family:
    return Family(name, adapter, make, shot, marks=types, main=main, own_positions=True)


_TWO = _make(
    "Qwen2VL",
    tower(embed_dim=WIDTH, hidden_size=WIDTH, mlp_ratio=2, intermediate_size=None),
    rope_parameters=ROPE,
)
_TWO_AND_A_HALF = _make(
    "Qwen2_5_VL",
    tower(window_size=16, fullatt_block_indexes=[1], tokens_per_second=2),
    rope_parameters=ROPE,
)
_THREE = _make(
    "Qwen3VL",
    tower(depth=4, num_position_embeddings=64, deepstack_visual_indexes=[0, 1, 2]),
    rope_parameters=ROPE | {"mrope_interleaved": True},
    head_dim=WIDTH // 4,
)

RECIPES = (
    _family("qwen2_5_vl", "qwen2_vl", _TWO_AND_A_HALF, image, main=True),
    _family("qwen2_5_vl-video", "qwen2_vl", _TWO_AND_A_HALF, _timed),
    _family("qwen2_5_vl-mixed", "qwen2_vl", _TWO_AND_A_HALF, _mixed(_whole)),
    _family("qwen2_vl", "qwen2_vl", _TWO, image),
    _family("qwen2_vl-mixed", "qwen2_vl", _TWO, _mixed(_whole)),
    _family("qwen3_vl", "qwen3_vl", _THREE, image, main=True),
    _family("qwen3_vl-video", "qwen3_vl", _THREE, _stamped),
    _family("qwen3_vl-mixed", "qwen3_vl", _THREE, _mixed(_stamped)),
)


SPECIAL = {
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


def _processor(kind: str, video: str) -> Any:
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
    kind: f"{SPECIAL[START]}{SPECIAL[number]}{SPECIAL[END]}"
    for kind, number in (("image", IMAGE), ("video", VIDEO))
}

KITS = (
    Kit("qwen2_vl", SPECIAL, _FRAMED, _processor("Qwen2VL", "Qwen2VL")),
    Kit("qwen2_5_vl", SPECIAL, _FRAMED, _processor("Qwen2_5_VL", "Qwen2VL")),
    Kit("qwen3_vl", SPECIAL, _FRAMED, _processor("Qwen3VL", "Qwen3VL")),
)
