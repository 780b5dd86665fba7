"""GLM-4.1V from its folder, with images or with videos.

Tokens are squares of 8 x 8 pixels, and a frame of tokens is made of two pictures of a video.
"""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tests.adapters.user import ask, check, generate, image, load, video

pytestmark = pytest.mark.filterwarnings(  # of the processor, which gives numpy a tensor
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

IMAGES, GRIDS = [image(32, 48), image(40, 24, seed=1)], [(1, 4, 6), (1, 5, 3)]
VIDEOS, CLIPS = [video(6, 24, 32, seed=2), video(4, 32, 16, seed=3)], [(3, 3, 4), (2, 4, 2)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load("glm4v", tmp_path_factory.mktemp("glm4v"))


@pytest.mark.parametrize(("parts", "grids"), [(IMAGES, GRIDS), (VIDEOS, CLIPS)])
def test_one_picture_and_two(loaded, parts, grids):
    processor, model = loaded
    check(model, ask(processor, parts[:1]), [grids[:1]])
    check(model, ask(processor, parts), [grids])


@pytest.mark.parametrize(("parts", "grids"), [(IMAGES, GRIDS), (VIDEOS, CLIPS)])
def test_a_batch_of_prompts(loaded, parts, grids):
    processor, model = loaded
    check(model, ask(processor, parts[:1], [], parts), [grids[:1], [], grids])


def test_images_and_videos_in_one_call_are_refused_by_transformers(loaded):
    processor, model = loaded
    inputs = ask(processor, [VIDEOS[0], IMAGES[0]])
    with pytest.raises(ValueError, match="do not match"):
        generate(model, inputs)
    with pytest.raises(ValueError, match="do not match"), tr.reduce(model, "pyramid_drop"):
        generate(model, inputs)


def test_beams(loaded):
    """With one image: beams of several images and of videos are broken in transformers' GLM-4V."""
    processor, model = loaded
    reduction = check(model, ask(processor, IMAGES[:1]), [GRIDS[:1]] * 3, num_beams=3)
    kept = reduction.kept[4]
    assert all(torch.equal(x, kept[0]) for x in kept)


def test_compact_positions_are_refused(loaded):
    _, model = loaded
    with pytest.raises(ValueError, match=r"compact.*keep"):
        tr.reduce(model, "pyramid_drop", positions="compact")
