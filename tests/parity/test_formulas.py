"""Methods whose originals have no recorded runs, against their papers' formulas, worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.testing.choices import GRIDS, tokens_of


def told(n: int, **evidence: Tensor) -> tr.Tokens:
    """`n` tokens in a row with the given evidence (without the sample's axis)."""
    from dataclasses import replace

    from tokenreduce.geometry import Picture
    from tokenreduce.testing.choices import Sample

    tokens = tokens_of([Sample([Picture.grid(1, n)], 5)])
    hidden = evidence.pop("hidden", tokens.hidden[0])
    given = {name: (lambda x=x: x[None]) for name, x in evidence.items()}
    return replace(tokens, hidden=hidden[None], evidence=given)


def test_fitprune_drops_the_lowest_product() -> None:
    """Other toolkits keep it: section 3.2 of the paper deletes what both attend to least."""
    text = torch.tensor([0.9, 0.1, 0.5, 0.4, 0.2])
    visual = torch.tensor([0.1, 0.8, 0.3, 0.4, 0.2])  # products .09 .08 .15 .16 .04
    given = told(5, received_from_text=text, received_from_visual=visual)
    orders = {4: [0, 1, 2, 3], 3: [0, 2, 3], 2: [2, 3], 1: [3]}
    for k, kept in orders.items():
        assert tr.FitPrune().plan(given, [k]).keep[0].tolist() == kept


def test_fitprunes_schedule_is_the_authors() -> None:
    stops = tr.FitPrune().scheduler().stops(32)
    left = {stop.layer: stop.count(576) for stop in stops}
    assert (left[1], left[2], left[3], left[4]) == (562, 529, 440, 404)
    assert 0 not in left  # the first drop is behind layer 0
    assert len(stops) == 26
    assert left[max(left)] == 576 - 449


def directions(*degrees: float) -> Tensor:
    """(1, v, 2) unit keys of one head at these angles."""
    angle = torch.tensor(degrees) * torch.pi / 180
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[None]


def test_pact_clusters_and_sets_aside() -> None:
    """Three bundles of directions, more than the cutoff (0.21: about 38 degrees) apart."""
    keys = directions(0, 4, 8, 90, 94, 180, 60)
    n = keys.shape[1]
    hidden = torch.arange(1.0, n + 1)[:, None].expand(n, 4).clone()
    zero = torch.zeros(1, n, 2)
    given = told(n, keys=keys, plain_queries=zero, plain_keys=zero, hidden=hidden)
    # all keys are alike before rotation: importance is the norm, and the last four go on
    strategy = tr.PACT(important=4 / 7)
    score = strategy.score(given)[0]
    assert torch.allclose(score, hidden.norm(dim=1) / n)
    plan = strategy.plan(given, [3])
    # dense first: 94 degrees has 90 and 60 near; then 180; no other is outside, so the farthest
    assert plan.keep[0].tolist() == [4, 5, 6]
    # 0, 4 and 8 are farther than 1.5 cutoffs (0.315: about 47 degrees) from 60: they leave but 94
    # takes 90 in
    assert plan.group is not None
    assert plan.group[0].tolist() == [-1, -1, -1, 0, 0, 1, 2]
    assert plan.merge(given.hidden)[0, :, 0].tolist() == [4.5, 6.0, 7.0]


def test_pact_takes_in_what_was_set_aside_within_reach() -> None:
    keys = directions(10, 40, 0, 180)
    zero = torch.zeros(1, 4, 2)
    hidden = torch.tensor([1.0, 1.0, 9.0, 9.0])[:, None].expand(4, 4).clone()
    given = told(4, keys=keys, plain_queries=zero, plain_keys=zero, hidden=hidden)
    plan = tr.PACT(important=0.5).plan(given, [2])
    assert plan.group is not None
    assert plan.group[0].tolist() == [0, 0, 0, 1]  # 40 degrees: 0.234, within 1.5 * 0.21
    near = tr.PACT(important=0.5, reach=1.0).plan(given, [2])
    assert near.group is not None
    assert near.group[0].tolist() == [0, -1, 0, 1]


@pytest.mark.parametrize("options", [{"important": 1.5}, {"cutoff": -1.0}, {"reach": -0.1}])
def test_pact_refuses_what_is_no_share(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        tr.PACT(**options)


@pytest.mark.parametrize("name", ["fitprune", "pact"])
def test_they_work_on_ragged_batches(name: str) -> None:
    strategy = tr.strategies.build(name)
    plan = strategy.plan(tokens_of(GRIDS), [5, 0, 4, 1])
    assert plan.counts().tolist() == [5, 0, 4, 1]


def tiled(rows: int, columns: int) -> tr.Tokens:
    """A whole picture of 2 x 2, then a grid of crops of 2 x 2, laid out `rows` x `columns`."""
    from tokenreduce.geometry import Picture
    from tokenreduce.testing.choices import Sample

    whole, crops = Picture.grid(2, 2), Picture.grid(2 * rows, 2 * columns, tile=1)
    return tokens_of([Sample([Picture.join([whole, crops])], 1)])


def asked(given: tr.Tokens, first: list[float], later: Tensor) -> tr.Tokens:
    from dataclasses import replace

    early = torch.zeros(1, 1, len(later))
    early[0, 0, :4] = torch.tensor(first)
    evidence = {
        "class_attention_first": lambda: early,
        "class_attention": lambda: later[None, None],
    }
    return replace(given, evidence=evidence)


def test_hired_gives_crops_what_the_whole_picture_says() -> None:
    """Of four places the upper two are attended to early: the lower crops get nothing."""
    given = tiled(2, 2)
    later = torch.linspace(0, 0.9, 20)  # the later a token, the better
    plan = tr.HiRED(whole=0.5).plan(asked(given, [0.4, 0.3, 0.2, 0.1], later), [8])
    at = given.places
    kept = plan.keep[0]
    rows, tile = at.row[0, kept], at.tile[0, kept]
    assert int((tile == 0).sum()) == 4
    crops = [(int(r), int(c)) for r, c in zip(rows, at.column[0, kept], strict=True)][4:]
    # two for each upper crop, the best of each: its lower row
    assert crops == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_hired_shares_in_proportion_and_meets_the_budget() -> None:
    given = tiled(1, 2)
    later = torch.linspace(0, 0.9, 12)
    strategy = tr.HiRED(whole=0.25)  # three places count: two on the left, one on the right
    plan = strategy.plan(asked(given, [0.4, 0.1, 0.3, 0.2], later), [8])
    columns = given.places.column[0, plan.keep[0]][given.places.tile[0, plan.keep[0]] == 1]
    assert len(plan.keep[0]) == 8
    assert int((given.places.tile[0, plan.keep[0]] == 0).sum()) == 2
    assert (columns < 2).sum() == 4  # two thirds of six
    assert (columns >= 2).sum() == 2


def test_hired_without_crops_keeps_the_best() -> None:
    from tokenreduce.geometry import Picture
    from tokenreduce.testing.choices import Sample

    given = tokens_of([Sample([Picture.grid(4, 4)], 1)])
    later = torch.rand(16, generator=torch.Generator().manual_seed(0))
    plan = tr.HiRED().plan(asked(given, [0.1] * 4, later), [5])
    assert set(plan.keep[0].tolist()) == set(later.topk(5).indices.tolist())


@pytest.mark.parametrize("whole", [-0.5, 2.0])
def test_hired_refuses_what_is_no_share(whole: float) -> None:
    with pytest.raises(ValueError, match=str(whole)):
        tr.HiRED(whole=whole)
