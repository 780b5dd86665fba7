"""`reduction.pictures` against known pictures: paint a part, see which tokens change.

The layers of the vision tower are made to add nothing (output projections of zero), so that a
token's features depend on its own patch alone. Every token must change exactly when the painted
pixels lie in its box, in the picture that the processor made of the original.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tokenreduce.testing.models import FAMILIES, IMAGE, TILE, WORDS

PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [TILE, 4 * TILE]]


@pytest.fixture(scope="module")
def local():
    """A tiny LLaVA-NeXT whose image features are local."""
    model = FAMILIES["llava_next"].model()
    model.config.image_grid_pinpoints = PINPOINTS
    with torch.no_grad():
        for name, weight in model.model.vision_tower.named_parameters():
            if ".layers." in name and ("out_proj" in name or "fc2" in name):
                weight.zero_()
    return model


@pytest.fixture(scope="module")
def processor():
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    return LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        resample=Image.Resampling.NEAREST,
    )


def encode(model, processor, picture):
    """(tokens, width) packed features of one picture, and its geometry."""
    found = processor(picture, return_tensors="pt")
    pixels, sizes = found["pixel_values"], found["image_sizes"]
    with torch.no_grad():
        features = model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output[0]
        ids = torch.tensor([[1, *[IMAGE] * len(features), *torch.arange(10, 14).tolist()]])
        assert ids.max() < WORDS
        with tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
            model(input_ids=ids, pixel_values=pixels, image_sizes=sizes)
    return features, reduction.pictures[0][0]


# heights and widths: the tile grid's own shape, wide, tall, padded on either side, extreme
SHAPES = [(96, 192), (192, 96), (192, 192), (96, 168), (150, 192), (48, 480), (480, 48), (20, 700)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_painted_parts_change_the_tokens_that_cover_them(local, processor, shape):
    height, width = shape
    blank = np.full((height, width, 3), 128, dtype=np.uint8)
    before, picture = encode(local, processor, Image.fromarray(blank))
    assert len(picture) == len(before)
    assert (picture.box >= 0).all()
    assert (picture.box <= 1 + 1e-6).all()
    shown = ~picture.separator
    generator = np.random.default_rng(0)
    hits = 0
    least = -(-2 * max(shape) // (4 * TILE))  # two pixels of the resized picture: nearest hits one
    for _ in range(6):
        y, x = generator.random(2) * 0.8
        painted = blank.copy()
        top, left = int(y * max(0, height - least)), int(x * width)
        bottom, right = min(height, top + max(least, height // 6)), left + width // 6
        painted[top:bottom, left:right] = 255
        after, _ = encode(local, processor, Image.fromarray(painted))
        changed = (after - before).abs().amax(dim=1) > 1e-6
        assert not changed[picture.separator].any()
        for tile in picture.tile.unique():
            here = shown & (picture.tile == tile)
            # a cell may be off by the rounding of the resize: half a cell at most
            paint = (left / width, top / height, right / width, bottom / height)
            inside, near = (_overlap(picture.box, paint, by) for by in (-0.5, 0.5))
            assert changed[here & inside].all(), f"tile {tile}: painted, but unchanged"
            assert not changed[here & ~near].any(), f"tile {tile}: changed, but not painted"
            hits += int(changed[here].sum())
    assert hits > 6


def _overlap(box, paint, by):
    """Whether boxes, grown by a share of their own size on every side, overlap the paint."""
    left, top, right, bottom = paint
    margin = (box[:, 2:] - box[:, :2]) * by
    low, high = box[:, :2] - margin, box[:, 2:] + margin
    return (low[:, 0] < right) & (high[:, 0] > left) & (low[:, 1] < bottom) & (high[:, 1] > top)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_grid_is_whole(local, processor, shape):
    """Rows and columns count from 0 without a gap; every row of tile 1 ends with a separator."""
    _, picture = encode(local, processor, Image.new("RGB", shape[::-1]))
    for tile in (0, 1):
        here = picture.tile == tile
        cells = here & ~picture.separator
        rows, columns = int(picture.row[cells].max()) + 1, int(picture.column[cells].max()) + 1
        assert int(cells.sum()) == rows * columns
        assert torch.equal(picture.row[cells], torch.arange(rows).repeat_interleave(columns))
        assert torch.equal(picture.column[cells], torch.arange(columns).repeat(rows))
        ends = here & picture.separator
        assert picture.row[ends].tolist() == (list(range(rows)) if tile else [])
        assert (picture.column[ends] == columns).all()
        box = picture.box[cells]
        area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum()
        if tile:
            torch.testing.assert_close(area, torch.tensor(1.0))
    assert picture.tile.diff().min() >= 0
