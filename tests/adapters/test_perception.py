"""Perception LM from its folder: images as a thumbnail and tiles, and videos.

transformers takes images of one call only if they have equally many tiles.
"""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.adapters.painting import texture
from tests.adapters.user import ask, compare, load, video
from tokenreduce.testing.families.perception import TOKENS

pytest.importorskip("torchvision")  # for the processor of images


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load("perception_lm", tmp_path_factory.mktemp("perception_lm"))


def image(height, width, seed=0):
    """A part of a message: a picture in which places can be told apart."""
    return {"type": "image", "image": Image.fromarray(texture(height, width, seed))}


WIDE, TALL, CLIP = image(20, 90), image(90, 20, 1), video(3, 24, 36)


def tiles(picture):
    """How many rows and columns of tiles a picture has, from its boxes."""
    assert not picture.tile[:TOKENS].any()  # the thumbnail comes first
    box = picture.box[picture.tile == 1]
    return round(1 / float(box[-1, 3])), round(1 / float(box[-1, 2]))


def test_images(loaded):
    processor, model = loaded
    reduction = compare(model, ask(processor, [WIDE]), [5 * TOKENS])
    assert [tiles(picture) for picture in reduction.pictures[0]] == [(1, 4)]
    reduction = compare(model, ask(processor, [WIDE, TALL]), [10 * TOKENS])
    assert [tiles(picture) for picture in reduction.pictures[0]] == [(1, 4), (4, 1)]


def test_video(loaded):
    processor, model = loaded
    reduction = compare(model, ask(processor, [CLIP]), [3 * TOKENS])
    (clip,) = reduction.pictures[0]
    assert torch.equal(clip.frame, torch.arange(3).repeat_interleave(TOKENS))
    assert not clip.tile.any()


def test_video_and_image_in_one_prompt(loaded):
    processor, model = loaded
    for parts in ([CLIP, WIDE], [WIDE, CLIP]):
        reduction = compare(model, ask(processor, parts), [8 * TOKENS])
        for picture, part in zip(reduction.pictures[0], parts, strict=True):
            assert int(picture.frame.max()) == (2 if part is CLIP else 0)
            if part is WIDE:
                assert tiles(picture) == (1, 4)


def test_a_batch_of_prompts(loaded):
    processor, model = loaded
    inputs = ask(processor, [WIDE], [CLIP], [], [TALL])
    compare(model, inputs, [5 * TOKENS, 3 * TOKENS, 0, 5 * TOKENS])


def test_beams(loaded):
    processor, model = loaded
    inputs = ask(processor, [CLIP, WIDE])
    reduction = compare(model, inputs, [8 * TOKENS] * 3, num_beams=3)
    assert all(torch.equal(x, reduction.kept[4][0]) for x in reduction.kept[4])
