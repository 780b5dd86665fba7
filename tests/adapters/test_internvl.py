"""InternVL from its folder: images in tiles, which the processor cuts, and videos."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.adapters.painting import texture
from tests.adapters.user import ask, compare, load, video
from tokenreduce.testing.families.internvl import TOKENS

pytest.importorskip("torchvision")  # for the processor of videos


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load("internvl", tmp_path_factory.mktemp("internvl"))


def image(height, width, seed=0):
    """A part of a message: a picture in which places can be told apart."""
    return {"type": "image", "image": Image.fromarray(texture(height, width, seed))}


WIDE, TALL, SMALL = image(30, 60), image(60, 30, 1), image(24, 24, 2)


def tiles(picture):
    """How many rows and columns of tiles a picture has, from its boxes."""
    if not picture.tile.any():
        return 1, 1
    box = picture.box[picture.tile == 1]
    assert (picture.tile == 0).nonzero()[0] == len(picture) - TOKENS  # the thumbnail is last
    return round(1 / float(box[-1, 3])), round(1 / float(box[-1, 2]))


def test_images(loaded):
    processor, model = loaded
    reduction = compare(model, ask(processor, [WIDE]), [3 * TOKENS])
    assert [tiles(picture) for picture in reduction.pictures[0]] == [(1, 2)]
    reduction = compare(model, ask(processor, [WIDE, SMALL, TALL]), [7 * TOKENS])
    assert [tiles(picture) for picture in reduction.pictures[0]] == [(1, 2), (1, 1), (2, 1)]


def test_a_video_is_an_image_per_frame(loaded):
    processor, model = loaded
    reduction = compare(model, ask(processor, [video(3, 24, 36)]), [3 * TOKENS])
    assert [len(picture) for picture in reduction.pictures[0]] == [TOKENS] * 3
    reduction = compare(model, ask(processor, [TALL, video(2, 24, 36)]), [5 * TOKENS])
    assert [tiles(picture) for picture in reduction.pictures[0]] == [(2, 1), (1, 1), (1, 1)]


def test_a_batch_of_prompts(loaded):
    processor, model = loaded
    inputs = ask(processor, [WIDE], [], [SMALL, TALL])
    reduction = compare(model, inputs, [3 * TOKENS, 0, 4 * TOKENS])
    assert [[tiles(p) for p in row] for row in reduction.pictures] == [
        [(1, 2)],
        [],
        [(1, 1), (2, 1)],
    ]


def test_beams(loaded):
    processor, model = loaded
    reduction = compare(model, ask(processor, [WIDE]), [3 * TOKENS] * 3, num_beams=3)
    kept = reduction.kept[4]
    assert all(torch.equal(x, kept[0]) for x in kept)
    assert [[tiles(p) for p in row] for row in reduction.pictures] == [[(1, 2)]] * 3
