"""Where the tokens of Qwen-VL's and GLM-4V's pictures stand, proved in two ways.

Paint: the layers of the vision tower are made to add nothing, so that a token's features depend on
its own patches alone; a token must change exactly when the painted pixels lie in its box and frame.
Positions: the rows and columns that the model itself turns its queries and keys by.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.pairwise import in_turn
from tests.releases import skip_before_fixed
from tokenreduce.testing.batches import batch
from tokenreduce.testing.checkpoints import tokenizer
from tokenreduce.testing.families import KITS
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import decoder_of

pytestmark = pytest.mark.filterwarnings(  # of GLM-4V's processor, which gives numpy a tensor
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
RECIPES = [name for name in FAMILIES if name.startswith(NAMES)]
SHAPES = [(48, 48), (24, 64), (64, 24), (37, 53), (80, 130)]
"""Heights and widths: of whole tokens, wide, tall, to be resized, too large."""
FRAMES = 6


@pytest.fixture(scope="module", params=NAMES)
def local(request):
    """A tiny model whose features are local, its processor, and what stands for a picture."""
    kit, model = KITS[request.param], FAMILIES[request.param].model()
    with torch.no_grad():
        for name, weight in model.model.visual.blocks.named_parameters():
            if any(part in name for part in ("attn.proj", "fc2", "down_proj")):
                weight.zero_()
    processor = kit.processor(tokenizer(kit), "")
    processor.image_processor.resample = Image.Resampling.NEAREST
    processor.video_processor.resample = Image.Resampling.NEAREST
    return model, processor, kit.marks


def prompt(local, pixels):
    """The inputs for one picture: a video if there are several frames (t, h, w, 3)."""
    _, processor, marks = local
    if len(pixels) > 1:
        return dict(processor(text=[marks["video"]], videos=[pixels], return_tensors="pt"))
    image = Image.fromarray(pixels[0])
    return dict(processor(text=[marks["image"]], images=[image], return_tensors="pt"))


def encode(local, pixels):
    """(tokens, width) features of one picture."""
    given, base = prompt(local, pixels), local[0].model
    with torch.no_grad():
        if len(pixels) > 1:
            found = base.get_video_features(given["pixel_values_videos"], given["video_grid_thw"])
        else:
            found = base.get_image_features(given["pixel_values"], given["image_grid_thw"])
    return found.pooler_output[0]


def locate(local, pixels):
    """The geometry of one picture."""
    with torch.no_grad(), tr.reduce(local[0], "stride", tr.Single(0, 0.5)) as reduction:
        local[0](**prompt(local, pixels))
    (picture,) = reduction.pictures[0]
    return picture


@pytest.mark.parametrize(("shape", "kind"), in_turn(SHAPES, ["image", "video"]), ids=str)
def test_painted_parts_change_the_tokens_that_cover_them(local, shape, kind):
    height, width = shape
    frames = FRAMES if kind == "video" else 1
    blank = np.full((frames, height, width, 3), 128, dtype=np.uint8)
    before, picture = encode(local, blank), locate(local, blank)
    assert len(picture) == len(before)
    assert not picture.separator.any()
    assert int(picture.frame.max()) + 1 == max(frames // 2, 1)
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(4):
        y, x = generator.random(2) * 0.7
        top, left = int(y * height), int(x * width)
        bottom, right = top + max(height // 5, 5), left + max(width // 5, 5)
        at = int(generator.integers(frames))
        painted = blank.copy()
        painted[at, top:bottom, left:right] = 255
        after = encode(local, painted)
        changed = (after - before).abs().amax(dim=1) > 1e-6
        paint = (left / width, top / height, right / width, bottom / height)
        here = picture.frame == at // 2
        # a cell may be off by the rounding of the resize: half a cell at most
        inside, near = (overlap(picture.box, paint, by) for by in (-0.5, 0.5))
        assert changed[here & inside].all(), "painted, but unchanged"
        assert not changed[~here | ~near].any(), "changed, but not painted"
        hits += int(changed.sum())
    assert hits >= 4


def overlap(box, paint, by):
    """Whether boxes, grown by a share of their own size on every side, overlap the paint."""
    left, top, right, bottom = paint
    margin = (box[:, 2:] - box[:, :2]) * by
    low, high = box[:, :2] - margin, box[:, 2:] + margin
    return (low[:, 0] < right) & (high[:, 0] > left) & (low[:, 1] < bottom) & (high[:, 1] > top)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", RECIPES)
def test_rows_and_columns_are_those_of_the_models_own_positions(name, side):
    model, given = FAMILIES[name].model(), batch(FAMILIES[name], (1, 0, 2, 3), side)
    turned: list[torch.Tensor] = []

    def take(module, args, kwargs):
        turned.append(kwargs.get("position_ids", args[-1]))

    handle = decoder_of(model).rotary_emb.register_forward_pre_hook(take, with_kwargs=True)
    with torch.no_grad(), tr.reduce(model, "stride", tr.Single(2, 0.5)) as reduction:
        given.run(model)
    handle.remove()
    assert [len(row) for row in reduction.pictures] == [1, 0, 2, 3]
    for i, row in enumerate(reduction.pictures):
        axes = turned[0][:, i, given.visual[i]]
        assert sum(map(len, row)) == axes.shape[1]
        for picture in row:
            mine, axes = axes[:, : len(picture)], axes[:, len(picture) :]
            starts, frames = [], picture.frame.unique().numel()
            for frame in picture.frame.unique():
                time, row, column = mine[:, picture.frame == frame]
                if frames > 1 and not torch.equal(
                    picture.row[picture.frame == frame], row - row.min()
                ):
                    skip_before_fixed("video rows")
                assert time.unique().numel() == 1
                starts.append(int(time[0]))
                assert torch.equal(picture.row[picture.frame == frame], row - row.min())
                assert torch.equal(picture.column[picture.frame == frame], column - column.min())
            if len(set(starts)) == 1 < frames and name.startswith("qwen2_5_vl"):
                skip_before_fixed("video times")
            assert starts == sorted(set(starts))
