"""What is drawn of a reduction: tokens of every family in their places, merged ones together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tokenreduce as tr
from tests.viz.scenery import photo, prompt, reduced
from tokenreduce.testing.batches import batch
from tokenreduce.testing.families.qwen_vl import CLIPS, GRIDS, PATCH
from tokenreduce.testing.models import FAMILIES
from tokenreduce.viz import filmstrip, scenes

MERGING = ("tome", "pooling", "pact", "sparsevlm", "visionzip")
TWICE = tr.Explicit((1, 3), (0.6, 0.25))


def contents(reduction: tr.Reduction) -> dict[int, Tensor]:
    """(k, n) by stop: how much of every token at layer 0 each kept one contains.

    The plans' own `merge`, on tokens that each say who they are.
    """
    x, found = torch.eye(reduction.report.visual_tokens[0])[None], {}
    for layer, plan in reduction.plans.items():
        x = plan.merge(x)
        found[layer] = x[0]
    return found


@pytest.mark.parametrize("strategy", MERGING)
def test_merged_tokens_are_in_the_groups_that_contain_them(strategy: str) -> None:
    reduction = reduced(prompt("llava", 2), strategy, TWICE)
    drawn = scenes(reduction, [photo(40, 40), photo(40, 40, 1)])
    merged = 0
    for stage, (layer, inside) in enumerate(contents(reduction).items(), start=1):
        groups = [scene.stages[stage].group for scene in drawn]
        assert all(scene.stages[stage].layer == layer for scene in drawn)
        alone = bool((inside > 0).sum(dim=1).max() <= 1)
        assert alone == all(group is None for group in groups)
        if alone:
            continue
        group = np.concatenate([np.array(part) for part in groups])
        assert len(group) == inside.shape[1]
        for token, slot in enumerate(group):
            column = inside[:, token]
            if slot < 0:
                assert not column.any()
            else:
                assert column[slot] == column.max() > 0
        merged += 1
    assert merged


def test_a_token_of_several_groups_is_in_the_largest() -> None:
    """PruMerge adds a token to several others: it is drawn where most of it went."""
    reduction = reduced(prompt("llava"), "prumerge", tr.Single(0, 0.4))
    (scene,) = scenes(reduction, [photo(40, 40)])
    inside, kept = contents(reduction)[0], list(scene.stages[1].kept)
    assert ((inside > 0).sum(dim=0) > 1).any()
    for token, slot in enumerate(scene.stages[1].group or ()):
        if token in kept:
            assert kept[slot] == token
        else:
            assert inside[slot, token] == inside[:, token].max() > 0


@pytest.mark.parametrize("strategy", ["fastv", "pyramid_drop", "random", "divprune", "visionzip"])
def test_scores_are_those_that_chose(strategy: str) -> None:
    reduction = reduced(prompt("llava"), strategy, TWICE)
    (scene,) = scenes(reduction, [photo(40, 40)])
    assert scene.stages[0].score is None
    here = set(range(len(scene.boxes)))
    for stage in scene.stages[1:]:
        score = np.array(stage.score)
        assert set(np.flatnonzero(~np.isnan(score))) == here
        if strategy != "visionzip":  # there some stay that others were merged into
            best = sorted(here, key=lambda i: -score[i])[: len(stage.kept)]
            assert sorted(best) == list(stage.kept)
            here = set(stage.kept)
        else:
            here = {i for i, slot in enumerate(stage.group or ()) if slot >= 0}


def test_methods_without_scores_have_none() -> None:
    reduction = reduced(prompt("llava"), "tome", TWICE)
    (scene,) = scenes(reduction, [photo(40, 40)])
    assert [stage.score for stage in scene.stages] == [None] * 3


def test_separators_are_not_scored_and_not_drawn() -> None:
    reduction = reduced(prompt("llava_next"), "fastv", tr.Single(2, 0.4))
    (scene,) = scenes(reduction, [photo(24, 44)])
    separator = reduction.pictures[0][0].separator.numpy()
    assert separator.any()
    assert (np.isnan(np.array(scene.stages[1].score)) == separator).all()
    views = dict(scene.views())
    assert list(views) == ["overview", "details"]
    tokens = np.concatenate(list(views.values()))
    assert sorted(tokens) == list(np.flatnonzero(~separator))
    # the overview is coarser than the details, and both cover the picture
    for part in views.values():
        box = scene.boxes[part]
        area = ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum()
        assert area == pytest.approx(1, abs=0.01)


def test_a_token_of_qwen_is_two_patches_wide() -> None:
    _, rows, columns = GRIDS[0]
    reduction = reduced(prompt("qwen2_vl"), "fastv", tr.Single(2, 0.5))
    (scene,) = scenes(reduction, [photo(rows * PATCH, columns * PATCH)])
    pixels = scene.boxes * (scene.image.size * 2)
    np.testing.assert_allclose(pixels[:, 2:] - pixels[:, :2], 2 * PATCH)
    assert [name for name, _ in scene.views()] == [""]


@pytest.mark.parametrize("family", ["qwen2_5_vl-video", "llava_next_video-video", "qwen3_vl-video"])
def test_tokens_of_a_video_lie_in_their_frames(family: str) -> None:
    """Frames of one colour each: what a token's box shows is the colour of its frame."""
    reduction = reduced(prompt(family), "fastv", tr.Explicit((1, 3), (0.5, 0.2)))
    (picture,) = reduction.pictures[0]
    number = int(picture.frame.max()) + 1
    each = 2 if family.startswith("qwen") else 1  # pictures of a video in a frame of tokens
    frames = [Image.new("RGB", (64, 48), (40 * (i + 1), 0, 0)) for i in range(each * number)]
    (scene,) = scenes(reduction, [frames])
    assert scene.frames == each * number > 1
    pixels, (width, height) = np.asarray(scene.image), scene.image.size
    for box, frame in zip(scene.boxes, picture.frame.tolist(), strict=True):
        if box[2] <= box[0]:
            continue
        left, top, right, bottom = np.rint(box * [width, height, width, height]).astype(int)
        assert (pixels[top:bottom, left:right, 0] == 40 * (each * frame + 1)).all()
    kept = [len(stage.kept) for stage in scene.stages]
    assert kept == [len(picture), *(stop["kept"][0] for stop in reduction.report.stops)]


def test_qwens_clips_have_several_frames() -> None:
    assert min(clip[0] for clip in CLIPS) > 1


def test_pictures_of_a_prompt_have_their_own_tokens() -> None:
    reduction = reduced(prompt("llava", 3), "fastv", tr.Single(2, 0.5))
    shown = [photo(40, 40, i) for i in range(3)]
    drawn = scenes(reduction, shown, names=["a.png", "b.png"])
    assert [scene.name for scene in drawn] == ["a.png", "b.png", "picture 3"]
    found = []
    for i, scene in enumerate(drawn):
        assert scene.image is shown[i]
        assert scene.stages[0].caption == "all 25"
        assert scene.stages[1].caption == f"from layer 2: {len(scene.stages[1].kept)}"
        found += [25 * i + token for token in scene.stages[1].kept]
    assert found == reduction.kept[2][0].tolist()


def test_a_row_of_a_ragged_batch_is_drawn_alone() -> None:
    """Padded beside a longer prompt, a sample shows what it shows alone."""
    given = batch(FAMILIES["llava"], (3, 1))
    for strategy in ("fastv", "tome", "visionzip"):
        alone = scenes(reduced(given.row(1), strategy, TWICE), [photo(40, 40)])
        padded = scenes(reduced(given, strategy, TWICE), [photo(40, 40)], sample=1)
        for a, b in zip(alone[0].stages, padded[0].stages, strict=True):
            assert (a.kept, a.group, a.caption) == (b.kept, b.group, b.caption)
            if a.score is not None:
                np.testing.assert_allclose(a.score, b.score, rtol=1e-3, atol=1e-6)


def test_everything_may_leave() -> None:
    reduction = reduced(prompt("llava"), "vtw", tr.Explicit((2, 4), (0.0, 0.0)))
    (scene,) = scenes(reduction, [photo(40, 40)])
    assert [len(stage.kept) for stage in scene.stages] == [25, 0, 0]


def test_what_the_tower_merged_is_shown() -> None:
    strategy = tr.ToMe(r=4, tower="expanded")
    reduction = reduced(prompt("llava", 2), strategy, None)
    drawn = scenes(reduction, [photo(40, 40), photo(40, 40, 1)])
    assert reduction.tower is not None
    groups = reduction.tower.group
    for i, scene in enumerate(drawn):
        whole, tower = scene.stages
        assert (whole.group, tower.layer) == (None, None)
        assert list(tower.kept) == list(range(25))  # the language model gets as many as ever
        alike = groups[i, 1:][:, None] == groups[i, 1:][None]
        shown = torch.tensor(tower.group)
        assert torch.equal(shown[:, None] == shown[None], alike)
        assert tower.caption == f"vision tower: {len(set(groups[i, 1:].tolist()))} groups"
        assert len(set(groups[i, 1:].tolist())) < 25


def test_groups_that_the_tower_hands_on_are_shown() -> None:
    reduction = reduced(prompt("llava"), tr.ToMe(r=4, tower="merged"), None)
    (scene,) = scenes(reduction, [photo(40, 40)])
    _, stage = scene.stages
    assert stage.layer == 0
    assert len(set(stage.group or ())) == len(stage.kept) < 25


def fake(kept: list[list[int]], plans: dict[int, tr.Plan]) -> Any:
    """A reduction as drawing sees it: one picture of 6 tokens in a row."""
    return SimpleNamespace(
        pictures=[[tr.Picture.grid(1, 6)]],
        kept={i: [torch.tensor(row)] for i, row in enumerate(kept)},
        plans=plans,
        tower=None,
    )


def test_a_prompt_in_chunks_shows_what_is_kept() -> None:
    """Its plans are about the last chunk alone: they are left aside."""
    last = tr.Plan(torch.tensor([[0, 1]]), content=tr.Merge(torch.tensor([[0, 1, 1]])))
    reduction = fake([[0, 2, 3, 4], [2, 4]], {0: last, 1: last})
    (scene,) = scenes(reduction, [photo(10, 60)])
    assert [list(stage.kept) for stage in scene.stages[1:]] == [[0, 2, 3, 4], [2, 4]]
    assert [stage.group for stage in scene.stages] == [None] * 3


def test_another_number_of_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 picture, but 2 were given"):
        scenes(fake([], {}), [photo(10, 60)] * 2)


def test_a_video_needs_its_frames() -> None:
    clip = tr.Picture.grid(2, 2, frames=3)
    with pytest.raises(ValueError, match="tokens of 3 frames, but 2"):
        filmstrip([photo(10, 10)] * 2, clip)


def test_a_sheet_has_room_for_every_frame() -> None:
    clip = tr.Picture.grid(2, 3, frames=7)
    sheet, boxes = filmstrip([photo(100, 150, i) for i in range(14)], clip)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    cells = {tuple(np.rint(box * 1000).astype(int)) for box in boxes}
    assert len(cells) == len(clip)
    assert max(sheet.size) < 4 * 160
