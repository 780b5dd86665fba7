"""InternVL: where the tokens of an image's tiles stand, read off the processor's own pixels."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import check, local, texture
from tokenreduce.testing.families.internvl import SIDE, TOKENS
from tokenreduce.testing.models import END, FAMILIES, IMAGE, START
from tokenreduce.testing.plain import agrees_with_itself

# heights and widths, and the rows and columns of tiles that the processor cuts them into
SHAPES = {
    (30, 30): (1, 1), (30, 60): (1, 2), (60, 30): (2, 1), (128, 64): (4, 2),
    (96, 160): (3, 5), (160, 96): (5, 3),
    (40, 200): (1, 5), (90, 130): (2, 3), (200, 50): (4, 1), (120, 121): (3, 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return local("internvl")


@pytest.fixture(scope="module")
def processor():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, max_patches=15
    )


def encode(model, processor, *images):
    """(tokens, width) features of some images in one prompt, and their geometry."""
    found = processor(list(images), return_tensors="pt")
    pixels, counts = found["pixel_values"], found["num_patches"].tolist()
    ids = [1, 11]
    for n in counts:
        ids += [START, *[IMAGE] * (n * TOKENS), END, 12]
    with torch.no_grad():
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output
        with tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
            model(input_ids=torch.tensor([ids]), pixel_values=pixels)
    return features.flatten(0, 1), reduction.pictures[0]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_painted_parts_change_the_tokens_that_cover_them(model, processor, shape):
    def one(pixels):
        features, (picture,) = encode(model, processor, Image.fromarray(pixels))
        return features, picture

    processor.resample = Image.Resampling.NEAREST  # a token sees nothing but its own pixels
    try:
        check(one, texture(*shape), least=-(-2 * max(shape) // SIDE))
    finally:
        processor.resample = Image.Resampling.BICUBIC


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_layout_of_the_tiles_is_found(model, processor, shape):
    rows, columns = SHAPES[shape]
    _, (picture,) = encode(model, processor, Image.fromarray(texture(*shape)))
    n = rows * columns
    if n == 1:
        assert picture.tile.unique().tolist() == [0]
        return
    # the tiles in reading order, then the thumbnail, which is the whole picture
    assert torch.equal(picture.tile, torch.tensor([*range(1, n + 1), 0]).repeat_interleave(TOKENS))
    for number in range(n + 1):
        mine = picture.tile == number
        assert torch.equal(picture.row[mine], torch.arange(4).repeat_interleave(4))
        assert torch.equal(picture.column[mine], torch.arange(4).repeat(4))
        box, i = picture.box[mine], number - 1
        least = [i % columns / columns, i // columns / rows] if number else [0.0, 0.0]
        size = [1 / columns, 1 / rows] if number else [1.0, 1.0]
        torch.testing.assert_close(box[0, :2], torch.tensor(least))
        torch.testing.assert_close(box[-1, 2:], torch.tensor(least) + torch.tensor(size))


def test_pixel_shuffle_keeps_rows_and_columns(model):
    """Coordinates in place of features, through the model's own function."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    shuffled = model.model.pixel_shuffle(torch.stack([y, x], dim=-1)[None], scale_factor=0.5)
    # four patches of two numbers each are a token: the smallest is the first of its square
    rows, columns = (shuffled[0, ..., i::2].amin(dim=-1).flatten() / 2 for i in (0, 1))
    grid = tr.Picture.unknown(TOKENS)
    assert torch.equal(rows, grid.row.float())
    assert torch.equal(columns, grid.column.float())


def test_several_images_are_several_pictures(model, processor):
    images = [Image.fromarray(texture(*shape)) for shape in ((30, 60), (30, 30), (60, 30))]
    _, pictures = encode(model, processor, *images)
    assert [len(picture) // TOKENS for picture in pictures] == [3, 1, 3]
    wide, _, tall = pictures
    assert wide.box[TOKENS, 0] == tall.box[TOKENS, 1] == 0.5
    assert wide.box[TOKENS, 1] == tall.box[TOKENS, 0] == 0.0


def test_what_the_pixels_do_not_tell_is_not_claimed(model, processor):
    """A picture of one colour has its thumbnail, and tiles of which nobody knows the place."""
    _, (picture,) = encode(model, processor, Image.new("RGB", (128, 128), "teal"))
    whole = picture.tile == 0
    assert int(whole.sum()) == TOKENS
    assert whole[-TOKENS:].all()
    assert torch.equal(picture.box[whole], tr.Picture.unknown(TOKENS).box)
    assert (picture.box[~whole] == 0).all()
    assert picture.tile.max() == 9


def test_tiles_that_are_no_picture_are_numbered(model):
    """Noise in place of tiles: no view is taken for the thumbnail."""
    given = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, START, *[IMAGE] * (5 * TOKENS), END, 12]])
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
        model(input_ids=ids, pixel_values=given)
    (picture,) = reduction.pictures[0]
    assert picture.tile.unique().tolist() == [1, 2, 3, 4, 5]
    assert (picture.box == 0).all()


def test_a_chunk_of_a_prompt_says_what_it_knows(model, processor):
    """Chunked prefill: the tiles of a chunk are numbered, and their layout is left open."""
    given = processor(Image.fromarray(texture(128, 128)), return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[1, START, *[IMAGE] * (len(given) * TOKENS), END, 12, 13]])
    prompt = {"input_ids": ids, "pixel_values": given}
    if not agrees_with_itself(model, prompt, prefill_chunk_size=40):
        pytest.skip("this transformers leaves pictures out of a prefill in chunks")
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(2, 0.5)):
        said = model.generate(
            input_ids=ids, pixel_values=given, prefill_chunk_size=40, max_new_tokens=2,
            do_sample=False,
        )  # fmt: skip
    assert said.shape[1] == ids.shape[1] + 2


def test_frames_of_a_video_are_images():
    from tokenreduce.testing.batches import batch

    family = FAMILIES["internvl-video"]
    model, prompt = family.model(), batch(family, (1, 2))
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
        model(**prompt.inputs)
    assert [[len(p) for p in row] for row in reduction.pictures] == [[16] * 2, [16] * 5]
    assert all((p.tile == 0).all() for row in reduction.pictures for p in row)


def test_beams_share_the_pictures_of_their_sample(model, processor):
    images = [Image.fromarray(texture(30, 60))]
    given = processor(images, return_tensors="pt")["pixel_values"]
    ids = torch.tensor([[1, START, *[IMAGE] * (len(given) * TOKENS), END, 12, 13]])
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(2, 0.5)) as reduction:
        model.generate(
            input_ids=ids, pixel_values=given, num_beams=2, max_new_tokens=2, do_sample=False
        )
    assert [[len(p) for p in row] for row in reduction.pictures] == [[3 * TOKENS]] * 2
