"""LLaVA-OneVision and LLaVA-NeXT-Video: tiles, scaled-down grids, several images, and videos."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import check, local, texture
from tokenreduce.testing.families.onevision import FRAMES, SIDES, grid, scaled
from tokenreduce.testing.models import IMAGE, VIDEO

# the tile grid's own shape, wide, tall, padded on either side, extreme
SHAPES = [(96, 192), (192, 96), (192, 192), (96, 168), (150, 192), (48, 192), (192, 48)]
NAMES = {"llava_onevision": "onevision", "llava_next_video": "next_video"}


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return local(name)


@pytest.fixture(scope="module")
def onevision():
    return local("llava_onevision")


def processor(model):
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    tile, options = model.config.vision_config.image_size, {}
    kind = LlavaOnevisionImageProcessorPil
    if model.config.model_type == "llava_next_video":
        kind = LlavaNextImageProcessorPil
        options = {"crop_size": {"height": tile, "width": tile}}
    return kind(
        size={"height": tile, "width": tile},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
        resample=Image.Resampling.NEAREST,
        **options,
    )


def run(model, ids, **inputs):
    """The pictures of one prompt."""
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
        model(input_ids=torch.tensor([[1, 11, *ids, 12, 13]]), **inputs)
    return reduction.pictures[0]


def encode(model, *pictures):
    """Features of some images in one prompt, and their geometry."""
    given = [Image.fromarray(pixels) for pixels in pictures]
    found = processor(model)([given] if len(given) > 1 else given, return_tensors="pt")
    inputs = {key: found[key] for key in found}
    with torch.no_grad():
        output = model.model.get_image_features(**inputs, return_dict=True).pooler_output
    places = run(model, [IMAGE] * sum(map(len, output)), **inputs)
    return output, places


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_painted_parts_change_the_tokens_that_cover_them(model, shape):
    def one(pixels):
        (features,), (picture,) = encode(model, pixels)
        return features, picture

    tile = model.config.vision_config.image_size
    blank = np.full((*shape, 3), 128, dtype=np.uint8)
    check(one, blank, least=-(-2 * max(shape) // tile))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_the_grid_is_whole(name, model, shape):
    """Rows and columns count from 0 without a gap; every row of tile 1 ends with a separator."""
    _, (picture,) = encode(model, np.zeros((*shape, 3), dtype=np.uint8))
    side = SIDES[NAMES[name]]
    for tile in (0, 1):
        here = picture.tile == tile
        cells = here & ~picture.separator
        rows, columns = int(picture.row[cells].max()) + 1, int(picture.column[cells].max()) + 1
        assert torch.equal(picture.row[cells], torch.arange(rows).repeat_interleave(columns))
        assert torch.equal(picture.column[cells], torch.arange(columns).repeat(rows))
        ends = here & picture.separator
        assert picture.row[ends].tolist() == (list(range(rows)) if tile else [])
        assert (picture.column[ends] == columns).all()
        assert (picture.box[ends] == 0).all()
        box = picture.box[cells]
        area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum()
        torch.testing.assert_close(area, torch.tensor(1.0))
        if not tile:
            assert (rows, columns) == (side, side)
    assert picture.tile.diff().min() >= 0


def test_a_large_grid_is_scaled_down(onevision):
    """Four tiles of 3 x 3 patches are more than two tiles' worth: 6 x 6 patches become 4 x 4."""
    _, (picture,) = encode(onevision, np.zeros((192, 192, 3), dtype=np.uint8))
    high = (picture.tile == 1) & ~picture.separator
    assert scaled(*grid(24, 24, SIDES["onevision"]), SIDES["onevision"]) == (4, 4)
    assert (int(picture.row[high].max()), int(picture.column[high].max())) == (3, 3)
    torch.testing.assert_close(picture.box[high][5], torch.tensor([0.25, 0.25, 0.5, 0.5]))


@pytest.mark.parametrize("shape", [(60, 60), (60, 120), (150, 40)], ids=str)
def test_one_of_several_images_is_padded_to_a_square(onevision, shape):
    other = texture(50, 90)

    def second(pixels):
        output, places = encode(onevision, other, pixels)
        assert [len(picture) for picture in places] == [10, 10]
        return output[1], places[1]

    picture = second(np.zeros((*shape, 3), dtype=np.uint8))[1]
    side = max(shape)
    assert picture.separator.tolist() == [False] * 9 + [True]
    low, high = picture.box[0], picture.box[8]
    gap = torch.tensor([(side - shape[1]) / 2 / shape[1], (side - shape[0]) / 2 / shape[0]])
    torch.testing.assert_close(low[:2], -gap)
    torch.testing.assert_close(high[2:], 1 + gap)
    check(second, np.full((*shape, 3), 128, dtype=np.uint8), least=-(-3 * side // 12))


def test_painted_parts_of_videos(name, model):
    """Frames go in as they are; every frame is a grid of its own."""
    size, side = model.config.vision_config.image_size, SIDES[NAMES[name]]
    tokens = FRAMES * math.ceil(side / 2) ** 2 + (name == "llava_onevision")

    def one(frames):
        given = torch.from_numpy(frames).permute(0, 3, 1, 2).float()[None] / 255
        with torch.no_grad():
            output = model.model.get_video_features(given, return_dict=True).pooler_output
        (picture,) = run(model, [VIDEO] * tokens, pixel_values_videos=given)
        return output[0].reshape(len(picture), -1), picture

    check(one, np.full((FRAMES, size, size, 3), 128, dtype=np.uint8), least=2, rounds=9)
    _, picture = one(np.zeros((FRAMES, size, size, 3), dtype=np.uint8))
    cells = ~picture.separator
    grids = tr.Picture.grid(math.ceil(side / 2), math.ceil(side / 2), frames=FRAMES)
    for part in ("frame", "row", "column", "tile"):
        assert torch.equal(getattr(picture, part)[cells], getattr(grids, part))
    ends = picture.separator.nonzero().flatten().tolist()
    assert ends == ([tokens - 1] if name == "llava_onevision" else [])
    assert (picture.frame[picture.separator] == FRAMES - 1).all()


def test_a_pool_that_does_not_fit_leaves_out_the_far_sides():
    """Five patches on a side, pooled by two: the last ones are in no token."""
    from types import SimpleNamespace

    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=20, patch_size=4), spatial_pool_stride=2
    )
    video, output = (
        torch.zeros(1, 3, 3, 20, 20),
        SimpleNamespace(pooler_output=torch.zeros(1, 12, 8)),
    )
    adapter = tr.adapters["llava_next_video"]()
    (clip,) = adapter.clips(SimpleNamespace(config=config), {"pixel_values_videos": video}, output)
    assert len(clip) == 12
    torch.testing.assert_close(clip.box[3], torch.tensor([0.4, 0.4, 0.8, 0.8]))
    assert clip.frame.tolist() == [0] * 4 + [1] * 4 + [2] * 4
