"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL from their folders, with images and videos.

Tokens are squares of 8 x 8 pixels: sizes are rounded to multiples of 8, and a frame of tokens is
made of two pictures of a video.
"""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tests.adapters.user import ask, check, image, load, video

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

IMAGES = [image(30, 50), image(40, 25, seed=1)]
GRIDS = [(1, 4, 6), (1, 5, 3)]
VIDEO, CLIP = video(6, 24, 33, seed=2), (3, 3, 4)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


def test_one_image_and_two(loaded):
    processor, model = loaded
    check(model, ask(processor, IMAGES[:1]), [GRIDS[:1]])
    check(model, ask(processor, IMAGES), [GRIDS])


def test_video(loaded):
    processor, model = loaded
    reduction = check(model, ask(processor, [VIDEO]), [[CLIP]])
    frames = reduction.pictures[0][0].frame[reduction.kept[4][0]]
    assert frames.unique().numel() > 1


def test_video_and_image_in_one_prompt(loaded):
    processor, model = loaded
    check(model, ask(processor, [VIDEO, IMAGES[0]]), [[CLIP, GRIDS[0]]])
    check(model, ask(processor, [IMAGES[1], VIDEO, IMAGES[0]]), [[GRIDS[1], CLIP, GRIDS[0]]])


def test_a_batch_of_prompts(loaded):
    processor, model = loaded
    check(model, ask(processor, IMAGES[:1], [], IMAGES), [GRIDS[:1], [], GRIDS])
    check(model, ask(processor, IMAGES[:1], [VIDEO], []), [GRIDS[:1], [CLIP], []])


def test_beams(loaded):
    processor, model = loaded
    for parts, grids in ((IMAGES, GRIDS), ([VIDEO, IMAGES[0]], [CLIP, GRIDS[0]])):
        reduction = check(model, ask(processor, parts), [grids] * 3, num_beams=3)
        kept = reduction.kept[4]
        assert all(torch.equal(x, kept[0]) for x in kept)


def test_compact_positions_are_refused(loaded):
    _, model = loaded
    with pytest.raises(ValueError, match=r"compact.*keep"):
        tr.reduce(model, "pyramid_drop", positions="compact")
    with tr.reduce(model, "pyramid_drop") as reduction:
        assert reduction.positions == "keep"
        with pytest.warns(tr.ReductionWarning):
            reduction.remove()
