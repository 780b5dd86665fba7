"""LLaVA-OneVision and LLaVA-NeXT-Video from their folders: images in tiles, several, and videos."""

from __future__ import annotations

import math

import pytest
import torch

import tokenreduce as tr
from tests.adapters.user import ask, compare, image, load, video
from tokenreduce.testing.families.onevision import SIDES, grid, scaled

pytest.importorskip("torchvision")  # for the processors of videos

FAMILIES = {"llava_onevision": "onevision", "llava_next_video": "next_video"}
SIZES = ((30, 60), (60, 40))
IMAGES = [image(*size, seed=i) for i, size in enumerate(SIZES)]
CLIP = video(3, 24, 36, seed=2)


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(name, tmp_path_factory):
    return load(name, tmp_path_factory.mktemp(name))


def single(name, size):
    """Rows and columns of the grid of an image's tiles."""
    side = SIDES[FAMILIES[name]]
    # the processor scales an image to fill two tiles, or four
    height, width = (4 * side * x * 2 // max(size) for x in size)
    found = grid(height, width, side)
    return scaled(*found, side) if name == "llava_onevision" else found


def tokens(name, size):
    """Of one image: the whole, and the grid with a newline after each row."""
    rows, columns = single(name, size)
    return SIDES[FAMILIES[name]] ** 2 + rows * (columns + 1)


def frames(name):
    """Tokens of the video."""
    side = math.ceil(SIDES[FAMILIES[name]] / 2)
    return 3 * side * side + (name == "llava_onevision")


def check_image(name, picture, size):
    high = (picture.tile == 1) & ~picture.separator
    rows, columns = single(name, size)
    assert torch.equal(picture.row[high], torch.arange(rows).repeat_interleave(columns))
    assert torch.equal(picture.column[high], torch.arange(columns).repeat(rows))
    assert int(picture.separator.sum()) == rows


def test_one_image(name, loaded):
    processor, model = loaded
    for part, size in zip(IMAGES, SIZES, strict=True):
        reduction = compare(model, ask(processor, [part]), [tokens(name, size)])
        check_image(name, reduction.pictures[0][0], size)


def test_several_images(name, loaded):
    processor, model = loaded
    if name == "llava_next_video":
        reduction = compare(model, ask(processor, IMAGES), [sum(tokens(name, s) for s in SIZES)])
        for picture, size in zip(reduction.pictures[0], SIZES, strict=True):
            check_image(name, picture, size)
        return
    # one tile and one newline each, the picture in the middle of a square
    reduction = compare(model, ask(processor, IMAGES), [20])
    for picture, (height, width) in zip(reduction.pictures[0], SIZES, strict=True):
        assert picture.separator.tolist() == [False] * 9 + [True]
        side = max(height, width)
        low, high = picture.box[0, :2], picture.box[8, 2:]
        scale = torch.tensor([side / width, side / height])
        torch.testing.assert_close(high - low, scale)
        torch.testing.assert_close(high + low, torch.ones(2))


def test_video(name, loaded):
    processor, model = loaded
    reduction = compare(model, ask(processor, [CLIP]), [frames(name)])
    (clip,) = reduction.pictures[0]
    side = math.ceil(SIDES[FAMILIES[name]] / 2)
    expected = tr.Picture.grid(side, side, frames=3)
    for part in ("frame", "row", "column", "box"):
        found = getattr(clip, part)[~clip.separator]
        torch.testing.assert_close(found, getattr(expected, part))


def test_video_and_image_in_one_prompt(name, loaded):
    processor, model = loaded
    both = tokens(name, SIZES[0]) + frames(name)
    for parts in ([CLIP, IMAGES[0]], [IMAGES[0], CLIP]):
        reduction = compare(model, ask(processor, parts), [both])
        found = {len(p): p for p in reduction.pictures[0]}
        check_image(name, found[tokens(name, SIZES[0])], SIZES[0])
        assert found[frames(name)].frame.max() == 2
        assert list(found) == [frames(name) if p is CLIP else tokens(name, SIZES[0]) for p in parts]


def test_a_batch_of_prompts(name, loaded):
    processor, model = loaded
    inputs = ask(processor, IMAGES[:1], [CLIP], [], IMAGES[1:])
    counts = [tokens(name, SIZES[0]), frames(name), 0, tokens(name, SIZES[1])]
    reduction = compare(model, inputs, counts)
    check_image(name, reduction.pictures[0][0], SIZES[0])
    check_image(name, reduction.pictures[3][0], SIZES[1])
    assert reduction.pictures[1][0].frame.max() == 2


def test_beams(name, loaded):
    processor, model = loaded
    inputs = ask(processor, [CLIP, IMAGES[0]])
    count = tokens(name, SIZES[0]) + frames(name)
    reduction = compare(model, inputs, [count] * 3, num_beams=3)
    assert all(torch.equal(x, reduction.kept[4][0]) for x in reduction.kept[4])


def test_the_command_line_gives_one_prompt_all_its_pictures(tmp_path):
    """A flat list would be one prompt for each, and cut every picture into tiles."""
    from tokenreduce.inference.inputs import encode
    from tokenreduce.inference.loaded import Loaded

    processor, model = load("llava_onevision", tmp_path)
    pictures = [image(30, 50)["image"], image(40, 25, seed=1)["image"]]
    inputs = encode(Loaded(model, processor, "tiny", False), "What is this?", pictures)
    asked = ask(processor, [image(30, 50), image(40, 25, seed=1)])
    assert inputs["batch_num_images"].tolist() == asked["batch_num_images"].tolist() == [2]
    with tr.reduce(model, "random") as reduction, torch.no_grad():
        model(**inputs)
        assert [len(p) for p in reduction.pictures[0]] == [10, 10]
