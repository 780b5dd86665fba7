"""Mistral 3 and LLaVA with a Pixtral tower: a grid of the picture's own shape."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import check, local, texture
from tokenreduce.testing.families.mistral import BREAK, MERGE, PATCH, SIDE
from tokenreduce.testing.models import END, IMAGE

FAMILIES = {"mistral3": (PATCH * MERGE, SIDE), "llava-pixtral": (PATCH, SIDE // 2)}
# heights and widths of pictures, and the rows and columns of tokens of 8 pixels
SHAPES = {(32, 32): (4, 4), (16, 32): (2, 4), (64, 40): (4, 3), (20, 30): (3, 4), (9, 60): (1, 4)}


def encode(model, images, unit, side):
    """(tokens, width) features of some images in one prompt, and their geometry."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    processor = PixtralImageProcessorPil(
        size={"longest_edge": side}, patch_size=unit, resample=Image.Resampling.NEAREST
    )
    found = processor(images, return_tensors="pt")
    pixels, sizes = found["pixel_values"], torch.as_tensor(found["image_sizes"])
    ids = [1]
    for height, width in sizes.tolist():
        line = [*[IMAGE] * (width // unit), BREAK]
        ids += [*(line * (height // unit))[:-1], END]
    given = {"pixel_values": pixels, "image_sizes": sizes}
    with torch.no_grad():
        features = model.model.get_image_features(**given, return_dict=True).pooler_output
        with tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
            model(input_ids=torch.tensor([[*ids, 12]]), **given)
    return torch.cat(list(features)), reduction.pictures[0]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("family", FAMILIES)
def test_painted_parts_change_the_tokens_that_cover_them(family, shape):
    model, (unit, side) = local(family), FAMILIES[family]

    def one(array):
        features, (picture,) = encode(model, [Image.fromarray(array)], unit, side)
        return features, picture

    check(one, texture(*shape), least=-(-2 * max(shape) // side))


def test_every_picture_has_a_grid_of_its_own():
    images = [Image.fromarray(texture(*shape)) for shape in SHAPES]
    for family, (unit, side) in FAMILIES.items():
        _, pictures = encode(local(family), images, unit, side)
        for picture, (rows, columns) in zip(pictures, SHAPES.values(), strict=True):
            if family == "mistral3":
                assert len(picture) == rows * columns
                assert torch.equal(picture.row, torch.arange(rows).repeat_interleave(columns))
                assert torch.equal(picture.column, torch.arange(columns).repeat(rows))
            assert not picture.separator.any()  # breaks are text


def test_all_of_the_original_is_seen():
    """Images are stretched to whole tokens; the padding is of a batch, and no token shows it."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    assert PixtralImageProcessorPil().do_pad
    for name in ("mistral3", "llava"):
        view = tr.adapters[name]().view(PixtralImageProcessorPil(), 60, 9)
        assert view == (0.0, 0.0, 1.0, 1.0)


def test_merged_patches_are_the_square_that_the_token_covers():
    """Through the model's own patch merger, with coordinates in place of features."""
    model = local("mistral3")
    merger = model.model.multi_modal_projector.patch_merger
    height, width = 6, 4
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    merged = []
    for coordinate in (y, x):
        features = torch.zeros(height * width, 32)
        features[:, 0] = coordinate.flatten()
        with torch.no_grad():
            merger.merging_layer.weight.zero_()
            merger.merging_layer.weight[0, : MERGE**2] = 1 / MERGE**2  # the mean of channel 0
            merged.append(merger(features, [(height * PATCH, width * PATCH)])[:, 0])
    grid = tr.Picture.grid(height // MERGE, width // MERGE)
    torch.testing.assert_close(merged[0], grid.row * MERGE + 0.5)
    torch.testing.assert_close(merged[1], grid.column * MERGE + 0.5)
