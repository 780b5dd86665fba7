"""Schedules that follow the progress of training."""

from __future__ import annotations

import itertools
import json

import pytest

import tokenreduce as tr
from tokenreduce.config import build_scheduler, compose
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

WRAPPERS = (tr.Curriculum, tr.Stochastic)
TARGETS = (tr.Pyramid(), tr.Single(2, 0.0), tr.Linear(), tr.Explicit((0, 9), (0.7, 0.3)))
WAY = [i / 40 for i in range(41)]


def shares(scheduler, progress: float) -> list[float]:
    return [stop.keep for stop in scheduler.stops(32, progress)]


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_inference_is_the_target_to_the_bit(kind, target):
    assert kind(target).stops(32) == target.stops(32)
    assert kind(target).stops(32, 1.0) == target.stops(32)


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_stops_stay_where_they_are_and_never_grow_with_depth(kind, target):
    for progress in WAY:
        stops = kind(target).stops(32, progress)
        assert [s.layer for s in stops] == [s.layer for s in target.stops(32)]
        assert all(a.keep >= b.keep for a, b in itertools.pairwise(stops))
        for mine, final in zip(stops, target.stops(32), strict=True):
            assert final.keep - 1e-12 <= mine.keep <= 1


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_a_curriculum_begins_with_everything_and_falls(target, shape):
    annealed = tr.Curriculum(target, begin=0.1, end=0.6, shape=shape)
    assert set(shares(annealed, 0.0)) == set(shares(annealed, 0.1)) == {1.0}
    assert shares(annealed, 0.6) == [stop.keep for stop in target.stops(32)]
    for earlier, later in itertools.pairwise(WAY):
        pairs = zip(shares(annealed, earlier), shares(annealed, later), strict=True)
        assert all(a >= b for a, b in pairs)
    middle = [(1 + stop.keep) / 2 for stop in target.stops(32)]
    assert shares(annealed, 0.35) == pytest.approx(middle)


def test_a_cosine_starts_slower_than_a_line():
    line, wave = (tr.Curriculum(begin=0, end=1, shape=s) for s in ("linear", "cosine"))
    assert wave.part(0.2) < line.part(0.2)
    assert wave.part(0.8) > line.part(0.8)


def test_a_curriculum_without_a_way_is_a_step():
    step = tr.Curriculum(begin=0.5, end=0.5)
    assert (step.part(0.49), step.part(0.5)) == (0.0, 1.0)


def test_draws_are_uniform_and_depend_on_seed_and_progress_alone():
    drawn = [tr.Stochastic(seed=1).part(i / 4000) for i in range(4000)]
    assert drawn == [tr.Stochastic(seed=1).part(i / 4000) for i in range(4000)]
    assert drawn != [tr.Stochastic(seed=2).part(i / 4000) for i in range(4000)]
    for tenth in range(10):
        inside = sum(tenth / 10 <= part < (tenth + 1) / 10 for part in drawn)
        assert 330 < inside < 470, f"{inside} of 4000 draws are in tenth {tenth}"
    lagged = sum((a - 0.5) * (b - 0.5) for a, b in itertools.pairwise(drawn)) / len(drawn)
    assert abs(lagged) < 0.005  # of a variance of 1/12: neighbours have nothing in common


def test_draws_stay_between_least_and_most():
    drawn = [tr.Stochastic(least=0.4, most=0.6).part(p) for p in WAY[:-1]]
    assert 0.4 <= min(drawn) < 0.45
    assert 0.55 < max(drawn) <= 0.6


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_target_is_named_in_three_ways(kind):
    said = [tr.Single(), "single", {"name": "single"}, {"name": "single", "keep": 0.5}]
    assert len({repr(kind(target)) for target in said}) == 1
    assert kind({"name": "explicit", "layers": [3], "keeps": [0.5]}).stops(32)[0].layer == 3


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("singel", KeyError, "did you mean 'single'"),
        ({"keep": 0.5}, ValueError, "has no name"),
        ({"name": "single", "kep": 0.5}, TypeError, "did you mean 'keep'"),
        ({"name": "single", "keep": 1.5}, ValueError, "1.5"),
        (3, TypeError, "not 3"),
    ],
)
def test_a_wrong_target_is_refused(kind, target, error, message):
    with pytest.raises(error, match=message):
        kind(target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tr.Curriculum(begin=0.7, end=0.2), "begin=0.7 comes after end=0.2"),
        (lambda: tr.Curriculum(end=2), "end must be a number between 0 and 1, not 2"),
        (lambda: tr.Curriculum(shape="cosin"), "did you mean 'cosine'"),
        (lambda: tr.Stochastic(least=0.5, most=0.1), "least=0.5 is above most=0.1"),
        (lambda: tr.Stochastic(seed=-1), "seed must be a whole number"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_line_wraps_any_schedule():
    words = ["scheduler=curriculum", "scheduler@scheduler.target=single"]
    built = build_scheduler(compose([*words, "scheduler.target.keep=0.25", "strategy=fastv"]))
    assert built == tr.Curriculum(tr.Single(keep=0.25))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_reduction_follows_progress_and_is_saved_with_its_target(kind, tmp_path):
    family = FAMILIES["llava"]
    model, given = family.model(), batch(family, (1,))
    schedule = kind(tr.Explicit((2, 4), (0.4, 0.2)))
    with tr.reduce(model, "random", schedule) as reduction:
        for progress in (0.0, 0.2, 0.7, 1.0):
            reduction.progress = progress
            model(**given.inputs)
            expected = [s.count(given.counts[0]) for s in schedule.stops(6, progress)]
            assert [stop["kept"][0] for stop in reduction.report.stops] == expected
        saved = reduction.save(tmp_path)
    assert json.loads(saved.read_text())["scheduler"]["options"]["target"]["name"] == "explicit"
    with tr.load(model, tmp_path) as again:
        assert again.scheduler == schedule
        model(**given.inputs)
