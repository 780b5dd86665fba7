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
