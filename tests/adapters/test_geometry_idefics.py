"""Idefics3 and SmolVLM: where tiles stand, read off the tags between them alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import check, local, texture
from tokenreduce.testing.families.idefics import LINE, PATCH, SHUFFLE, SIDE, TOKENS, shown

FAMILIES = ("idefics3", "smolvlm")
# heights and widths, and the rows and columns of tiles that the processor cuts them into
SHAPES = {
    (24, 24): (4, 4), (48, 96): (2, 4), (96, 48): (4, 2), (20, 96): (1, 4), (70, 30): (4, 2),
    (60, 80): (3, 4),
}  # fmt: skip


def processor(family, most=4):
    if family == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            Idefics3ImageProcessorPil as Processor,
        )
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import (
            SmolVLMImageProcessorPil as Processor,
        )
    return Processor(
        size={"longest_edge": most * SIDE},
        max_image_size={"longest_edge": SIDE},
        resample=Image.Resampling.NEAREST,
        return_row_col_info=True,
    )


def encode(model, images, most=4, apart=()):
    """(tokens, width) features of some images in one prompt, their geometry, and their layouts.

    `apart` are the ids of the text between two images.
    """
    found = processor(model.config.model_type, most)([images], return_tensors="pt")
    layouts = list(zip(found["rows"][0], found["cols"][0], strict=True))
    ids = [1, 11]
    for rows, columns in layouts:
        ids += [*shown(int(rows), int(columns)), *apart]
    given = {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}
    with torch.no_grad():
        features = model.model.get_image_features(**given, return_dict=True).pooler_output
        with tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
            model(input_ids=torch.tensor([[*ids, 12]]), **given)
    return torch.cat(tuple(features)), reduction.pictures[0], layouts


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_painted_parts_change_the_tokens_that_cover_them(family, shape):
    model = local(family)

    def one(array):
        features, (picture,), layouts = encode(model, [Image.fromarray(array)])
        assert layouts == [SHAPES[shape]]
        return features, picture

    check(one, texture(*shape), least=-(-2 * max(shape) // SIDE))


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_are_numbered_row_by_row_and_the_whole_is_0(family):
    model, images = local(family), [Image.fromarray(texture(*shape)) for shape in SHAPES]
    side = SIDE // (PATCH * SHUFFLE)
    for apart in ((), (14,), (14, LINE, 15)):
        _, pictures, layouts = encode(model, images, apart=apart)
        assert len(pictures) == len(SHAPES)
        for picture, (rows, columns) in zip(pictures, layouts, strict=True):
            n = int(rows * columns)
            order = torch.tensor([*range(1, n + 1), 0]).repeat_interleave(TOKENS)
            assert torch.equal(picture.tile, order)
            assert torch.equal(picture.row, (torch.arange(len(order)) % TOKENS) // side)
            assert torch.equal(picture.column, torch.arange(len(order)) % side)
            box, i = picture.box.view(n + 1, TOKENS, 4), torch.arange(n)
            where = torch.stack([i % columns / columns, i // columns / rows], dim=1)
            torch.testing.assert_close(box[:-1, 0, :2], where)
            torch.testing.assert_close(box[:-1, -1, 2:], where + 1 / torch.tensor([columns, rows]))
            torch.testing.assert_close(box[-1], tr.Picture.unknown(TOKENS).box)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_that_are_not_cut(family):
    """Neighbours are told apart by the tag that ends an image, with text between them or not."""
    images = [Image.fromarray(texture(30, 40, seed)) for seed in range(3)]
    for apart in ((), (14,), (14, LINE, 15)):
        _, pictures, layouts = encode(local(family), images, most=1, apart=apart)
        assert layouts == [(0, 0)] * 3
        assert [picture.tile.unique().tolist() for picture in pictures] == [[0]] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_original_is_seen(family):
    """Images are stretched to whole tiles; the padding is of a batch."""
    assert processor(family).do_pad
    assert tr.adapters[family]().view(processor(family), 60, 9) == (0.0, 0.0, 1.0, 1.0)


def test_pixel_shuffle_keeps_rows_and_columns():
    """Coordinates in place of features, through the model's own function."""
    side = SIDE // PATCH
    y, x = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    patches = torch.stack([y.flatten(), x.flatten()], dim=-1)[None]
    for family in FAMILIES:
        shuffled = local(family).model.connector.pixel_shuffle(patches, SHUFFLE)
        # the patches of a token, two numbers each: the smallest is the first of its square
        rows, columns = (shuffled[0, :, i::2].amin(dim=-1) / SHUFFLE for i in (0, 1))
        grid = tr.Picture.unknown(TOKENS)
        assert torch.equal(rows, grid.row.float())
        assert torch.equal(columns, grid.column.float())


def test_what_the_tags_do_not_tell_is_not_claimed():
    """Embeddings without ids, and tags of another layout: every tile is a picture of its own."""
    model, one = local("idefics3"), [Image.fromarray(texture(48, 96))]
    found = processor("idefics3")([one], return_tensors="pt")
    pixels = {"pixel_values": found["pixel_values"]}
    ids = torch.tensor([[1, *shown(2, 4), 12]])
    embeds = model.get_input_embeddings()(ids)
    mixed = [11 if token == LINE else token for token in shown(2, 4)]
    odd = [*mixed[: -TOKENS - 3], LINE, *mixed[-TOKENS - 3 :]]
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
        model(inputs_embeds=embeds, **pixels)
        assert [len(picture) for picture in reduction.pictures[0]] == [TOKENS] * 9
        model(input_ids=torch.tensor([[1, *odd, 12]]), **pixels)
        assert [len(picture) for picture in reduction.pictures[0]] == [9 * TOKENS]
