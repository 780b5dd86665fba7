"""Perception LM: a thumbnail and tiles, laid out as the pixels tell, and videos of whole frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import check, local, texture
from tokenreduce.testing.families.perception import FRAMES, SIDE, TOKENS
from tokenreduce.testing.models import IMAGE, VIDEO

# heights and widths, and the rows and columns of tiles that the processor cuts them into
SHAPES = {
    (30, 30): (3, 3), (20, 90): (1, 5), (30, 90): (2, 4), (90, 30): (4, 2), (300, 80): (3, 1),
    (30, 120): (1, 4), (120, 30): (4, 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return local("perception_lm")


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("torchvision")  # the family has no other image processor
    from transformers import PerceptionLMImageProcessor

    return PerceptionLMImageProcessor(tile_size=SIDE, max_num_tiles=9)


def places(model, ids, **inputs):
    """The pictures of one prompt."""
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
        model(input_ids=torch.tensor([[1, 11, *ids, 12, 13]]), **inputs)
    return reduction.pictures[0]


def encode(model, processor, pixels):
    """(tokens, width) features of one image, and its geometry."""
    given = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    given = given if isinstance(given, torch.Tensor) else torch.stack(list(given))
    with torch.no_grad():
        output = model.model.get_image_features(given, return_dict=True).pooler_output
    (picture,) = places(model, [IMAGE] * (len(output) * TOKENS), pixel_values=given)
    return output.flatten(0, 1), picture


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_painted_parts_change_the_tokens_that_cover_them(model, processor, shape):
    processor.resample = Image.Resampling.NEAREST  # a token sees nothing but its own pixels
    try:
        check(
            lambda pixels: encode(model, processor, pixels),
            texture(*shape),
            least=-(-2 * max(shape) // SIDE),
        )
    finally:
        processor.resample = Image.Resampling.BICUBIC


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_layout_of_the_tiles_is_found(model, processor, shape):
    rows, columns = SHAPES[shape]
    _, picture = encode(model, processor, texture(*shape))
    n = rows * columns
    assert torch.equal(picture.tile, torch.arange(n + 1).repeat_interleave(TOKENS))
    for number in range(n + 1):
        mine = picture.tile == number
        assert torch.equal(picture.row[mine], torch.arange(4).repeat_interleave(4))
        assert torch.equal(picture.column[mine], torch.arange(4).repeat(4))
        box, i = picture.box[mine], number - 1
        least = [i % columns / columns, i // columns / rows] if number else [0.0, 0.0]
        size = [1 / columns, 1 / rows] if number else [1.0, 1.0]
        torch.testing.assert_close(box[0, :2], torch.tensor(least))
        torch.testing.assert_close(box[-1, 2:], torch.tensor(least) + torch.tensor(size))


def test_what_the_pixels_do_not_tell_is_not_claimed(model, processor):
    """A picture of one colour: its thumbnail is known, the place of its tiles is not."""
    _, picture = encode(model, processor, np.full((60, 96, 3), 90, dtype=np.uint8))
    assert picture.tile[:TOKENS].unique().tolist() == [0]
    assert torch.equal(picture.box[:TOKENS], tr.Picture.unknown(TOKENS).box)
    assert (picture.box[TOKENS:] == 0).all()


def test_one_view_is_the_whole_image(model):
    pixels = torch.randn(2, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = places(model, [IMAGE] * 2 * TOKENS, pixel_values=pixels)
    assert [len(picture) for picture in found] == [TOKENS, TOKENS]
    for picture in found:
        assert torch.equal(picture.box, tr.Picture.unknown(TOKENS).box)


def test_painted_parts_of_videos(model):
    """The encoder of images gets the frames; they are frames all the same."""

    def one(frames):
        given = torch.from_numpy(frames).permute(0, 3, 1, 2).float()[None] / 255
        with torch.no_grad():
            output = model.model.get_image_features(given, return_dict=True).pooler_output
        ids = [VIDEO] * (FRAMES * TOKENS)
        (picture,) = places(model, ids, pixel_values_videos=given)
        return output.flatten(0, 1), picture

    blank = np.full((FRAMES, SIDE, SIDE, 3), 128, dtype=np.uint8)
    check(one, blank, least=2, rounds=9)
    _, picture = one(blank)
    for part in ("frame", "row", "column", "tile", "box"):
        assert torch.equal(getattr(picture, part), getattr(tr.Picture.grid(4, 4, frames=3), part))


@pytest.mark.parametrize("order", [(IMAGE, VIDEO), (VIDEO, IMAGE)])
def test_images_and_videos_in_one_prompt(model, order):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 3, SIDE, SIDE, generator=generator)
    video = torch.randn(1, FRAMES, 3, SIDE, SIDE, generator=generator)
    runs = {IMAGE: [IMAGE] * TOKENS, VIDEO: [VIDEO] * (FRAMES * TOKENS)}
    ids = [*runs[order[0]], 12, *runs[order[1]]]
    found = places(model, ids, pixel_values=image, pixel_values_videos=video)
    frames = [int(picture.frame.max()) + 1 for picture in found]
    assert frames == [1 if kind == IMAGE else FRAMES for kind in order]
    inputs = {"pixel_values": image, "pixel_values_videos": video}
    given = {"input_ids": torch.tensor([[1, 11, *ids, 12, 13]]), **inputs}
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(2, 0.5)) as reduction:
        model.generate(**given, max_new_tokens=2, do_sample=False)
    assert [int(picture.frame.max()) + 1 for picture in reduction.pictures[0]] == frames
