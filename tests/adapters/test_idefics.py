"""Idefics3 and SmolVLM from their folders: the processor cuts images into tiles of 3 x 3 tokens."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.user import ask, compare, image, load, video
from tokenreduce.testing.families.idefics import TOKENS

# tiles in rows and columns; the whole image comes after them
IMAGES = {(48, 96): (2, 4), (96, 24): (4, 1), (24, 24): (4, 4)}


@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def loaded(request, tmp_path_factory):
    if request.param == "smolvlm":
        pytest.importorskip("num2words")  # for the processor
    return load(request.param, tmp_path_factory.mktemp(request.param))


def tiles(picture):
    """How many rows and columns of tiles a picture has, from its boxes."""
    if not picture.tile.any():
        return 1, 1
    box = picture.box[picture.tile == 1]
    assert (picture.tile == 0).nonzero()[0] == len(picture) - TOKENS  # the whole is last
    return round(1 / float(box[-1, 3])), round(1 / float(box[-1, 2]))


def count(*layouts):
    """Visual tokens of images that are cut into so many tiles."""
    return sum((rows * columns + 1) * TOKENS for rows, columns in layouts)


def test_images(loaded):
    processor, model = loaded
    layouts = list(IMAGES.values())
    parts = [image(*size, seed=i) for i, size in enumerate(IMAGES)]
    for n in (1, 2, 3):
        reduction = compare(model, ask(processor, parts[:n]), [count(*layouts[:n])])
        assert [tiles(picture) for picture in reduction.pictures[0]] == layouts[:n]


def test_a_batch_of_prompts(loaded):
    processor, model = loaded
    one, two, _ = IMAGES.values()
    first, second, _ = (image(*size, seed=i) for i, size in enumerate(IMAGES))
    inputs = ask(processor, [first], [], [second, first])
    reduction = compare(model, inputs, [count(one), 0, count(two, one)])
    found = [[tiles(picture) for picture in row] for row in reduction.pictures]
    assert found == [[one], [], [two, one]]


def test_beams(loaded):
    processor, model = loaded
    size, layout = next(iter(IMAGES.items()))
    reduction = compare(model, ask(processor, [image(*size)]), [count(layout)] * 3, num_beams=3)
    assert all(torch.equal(x, reduction.kept[4][0]) for x in reduction.kept[4])
    assert [[tiles(picture) for picture in row] for row in reduction.pictures] == [[layout]] * 3


def test_images_that_are_not_cut(loaded):
    processor, model = loaded
    if not hasattr(processor.image_processor, "do_image_splitting"):
        pytest.skip("the processor always cuts")
    processor.image_processor.do_image_splitting = False
    try:
        inputs = ask(processor, [image(30, 40), image(24, 24, seed=1)])
        reduction = compare(model, inputs, [2 * TOKENS])
        assert [tiles(picture) for picture in reduction.pictures[0]] == [(1, 1)] * 2
    finally:
        processor.image_processor.do_image_splitting = True


def test_a_video_is_an_image_per_frame(loaded):
    processor, model = loaded
    if model.config.model_type == "idefics3":
        pytest.skip("Idefics3 has no videos")
    reduction = compare(model, ask(processor, [video(3, 24, 36)]), [3 * TOKENS])
    assert [tiles(picture) for picture in reduction.pictures[0]] == [(1, 1)] * 3
