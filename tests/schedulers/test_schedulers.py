"""Schedulers: where they stop, how many tokens stay, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pytest

import tokenreduce as tr
from tokenreduce.checks import layer_or_share
from tokenreduce.scheduler import Stop, layer_at, ordered, schedulers
from tokenreduce.schedulers import Cosine, Explicit, Linear, Pyramid, Single

SHIPPED = ("cosine", "explicit", "linear", "pyramid", "single")
DEPTHS = (4, 5, 24, 26, 28, 32, 40, 80)


def small(name: str):
    """The scheduler of that name, with stops that every depth in DEPTHS has."""
    return (
        Explicit(layers=(1, 0.75), keeps=(0.5, 0.2)) if name == "explicit" else schedulers[name]()
    )


def counts(scheduler, n: int, depth: int = 32) -> list[tuple[int, int]]:
    return [(stop.layer, stop.count(n)) for stop in scheduler.stops(depth)]


def test_the_five_are_registered():
    assert set(SHIPPED) <= set(schedulers)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", SHIPPED)
def test_stops_ascend_inside_the_depth_and_never_grow(name, depth):
    stops = small(name).stops(depth)
    assert stops
    assert all(0 <= stop.layer < depth and 0 <= stop.keep <= 1 for stop in stops)
    assert all(a.layer < b.layer and a.keep >= b.keep for a, b in pairwise(stops))
    assert stops == ordered(stops)


@pytest.mark.parametrize("name", SHIPPED)
def test_stops_are_pure_and_survive_json(name):
    scheduler = small(name)
    options = json.loads(json.dumps(dataclasses.asdict(scheduler)))
    again = schedulers.build(name, **options)
    assert again == scheduler
    assert again.stops(32) == scheduler.stops(32) == scheduler.stops(32, progress=0.0)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("rounding", ["nearest", "floor", "ceil"])
def test_rounding_reaches_every_stop(name, rounding):
    scheduler = dataclasses.replace(small(name), rounding=rounding)
    assert {stop.rounding for stop in scheduler.stops(32)} == {rounding}


def test_shares_of_the_depth_may_meet_in_a_shallow_decoder():
    scheduler = Explicit((0.0, 0.1, 0.2, 0.5), (0.9, 0.8, 0.7, 0.6))
    assert scheduler.stops(6) == (Stop(0, 0.8), Stop(1, 0.7), Stop(3, 0.6))
    assert [stop.layer for stop in scheduler.stops(40)] == [0, 4, 8, 20]


def test_pyramid_is_the_papers_default():
    assert counts(Pyramid(), 576) == [(8, 288), (16, 144), (24, 72)]
    assert counts(Pyramid(), 2880) == [(8, 1440), (16, 720), (24, 360)]
    assert Pyramid().stops(32) == Explicit().stops(32)


@pytest.mark.parametrize(
    ("n", "ratio", "code"),
    [(578, 0.6, [346, 208, 124]), (2880, 0.6, [1728, 1036, 622]), (575, 0.7, [402, 281, 197])],
)
def test_floor_counts_as_the_pyramid_drop_code(n, ratio, code):
    assert [kept for _, kept in counts(Pyramid(ratio=ratio, rounding="floor"), n)] == code


@pytest.mark.parametrize(
    ("n", "keep", "nearest", "floor", "ceil"),
    [
        (2880, 0.7, 2016, 2015, 2016),  # the float product is 2015.9999999999998
        (100, 0.57, 57, 56, 57),
        (37, 0.5, 18, 18, 19),  # half to even, as FastV's round()
        (39, 0.5, 20, 19, 20),
        (10, 0.1, 1, 1, 1),
        (576, 0.0, 0, 0, 0),
        (576, 1.0, 576, 576, 576),
        (0, 0.5, 0, 0, 0),
    ],
)
def test_counts_by_rounding_rule(n, keep, nearest, floor, ceil):
    got = [Stop(3, keep, rule).count(n) for rule in ("nearest", "floor", "ceil")]
    assert got == [nearest, floor, ceil]


def test_pyramid_stages_are_equal_within_a_layer():
    for depth in DEPTHS:
        for stages in range(2, min(depth, 9) + 1):
            edges = [0, *(stop.layer for stop in Pyramid(stages=stages).stops(depth)), depth]
            sizes = [b - a for a, b in pairwise(edges)]
            assert len(sizes) == stages
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("where", "depth", "layer"),
    [
        *[(0, 32, 0), (1, 32, 1), (31, 32, 31), (16.0, 32, 16)],
        *[(0.0, 32, 0), (0.5, 32, 16), (0.29, 100, 29), (0.99, 32, 31)],
    ],
)
def test_a_place_is_a_layer_or_a_share(where, depth, layer):
    assert layer_at(where, depth) == layer
    assert Single(layer=where).stops(depth) == (Stop(layer, 0.5),)


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("every", [1, 3, 8, 100])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.125, 1.0])
def test_falls_end_exactly_at_last(kind, every, keep):
    stops = kind(first=8, last=24, keep=keep, every=every).stops(32)
    assert stops[-1] == Stop(24, keep)
    assert stops[0].layer == min(8 + every, 24)
    assert {b.layer - a.layer for a, b in pairwise(stops[:-1])} <= {every}


def test_falls_are_what_they_are_called():
    line = {stop.layer: stop.keep for stop in Linear(first=8, last=24, keep=0.2).stops(32)}
    wave = {stop.layer: stop.keep for stop in Cosine(first=8, last=24, keep=0.2).stops(32)}
    assert list(line) == list(wave) == list(range(9, 25))
    assert [line[12], line[16], line[20]] == pytest.approx([0.8, 0.6, 0.4])
    assert wave[16] == pytest.approx(0.6)
    assert wave[12] == pytest.approx(0.2 + 0.8 * (1 + 2**-0.5) / 2)
    assert wave[9] > line[9]
    assert wave[23] < line[23]


def test_explicit_takes_the_lists_of_yaml():
    written = Explicit(layers=[8, 16], keeps=[0.5, 0.25])
    assert written == Explicit(layers=(8, 16), keeps=(0.5, 0.25))
    assert hash(written) == hash(Explicit(layers=(8, 16), keeps=(0.5, 0.25)))


REFUSED = {
    "truth as stages": (lambda: Pyramid(stages=True), "stages.*True.*truth value"),
    "text as stages": (lambda: Pyramid(stages="4"), "stages.*'4' .text"),
    "one stage": (lambda: Pyramid(stages=1), "at least 2, not 1"),
    "more stages than layers": (lambda: Pyramid(stages=9).stops(8), "stages=9.*at most 8"),
    "text as ratio": (lambda: Pyramid(ratio="0.5"), "ratio.*'0.5' .text"),
    "ratio above one": (lambda: Pyramid(ratio=1.5), "ratio.*between 0 and 1, not 1.5"),
    "ratio not a number": (lambda: Pyramid(ratio=float("nan")), "ratio.*nan"),
    "no such rounding": (lambda: Pyramid(rounding="cel"), "'cel'; did you mean 'ceil'"),
    "negative keep": (lambda: Single(keep=-0.1), "keep.*-0.1"),
    "truth as layer": (lambda: Single(layer=True), "layer.*True.*truth value"),
    "text as layer": (lambda: Single(layer="2"), "layer.*'2' .text"),
    "one as a share": (lambda: Single(layer=1.0), "whole number.*share.*not 1.0"),
    "half a layer": (lambda: Single(layer=2.5), "not 2.5"),
    "endless layer": (lambda: Single(layer=float("inf")), "not inf"),
    "negative layer": (lambda: Single(layer=-1), "layer.*-1"),
    "layer beyond": (lambda: Single(layer=32).stops(32), "layer 32 .*use 0 to 31"),
    "list beyond": (lambda: Explicit().stops(16), "layer 16 .*use 0 to 15"),
    "lists of unequal length": (lambda: Explicit([8], [0.5, 0.2]), "one length, not 1 and 2"),
    "a number as list": (lambda: Explicit(8, [0.5]), "layers must be a list.*not 8"),
    "text as list": (lambda: Explicit("8,16", [0.5, 0.2]), "layers must be a list.*'8,16'"),
    "empty lists": (lambda: Explicit([], []), "at least one entry"),
    "truth in a list": (lambda: Explicit([8, True], [0.5, 0.2]), "layers.*True"),
    "keeps above one": (lambda: Explicit([8], [288]), "keeps.*288"),
    "growing keeps": (lambda: Explicit([8, 16], [0.2, 0.5]), "do not come back.*0.5 at layer 16"),
    "layers out of order": (lambda: Explicit([16, 8], [0.5, 0.2]), "layer 8 follows layer 16"),
    "one layer twice": (lambda: Explicit([8, 0.25], [0.5, 0.5]).stops(32), "8 follows layer 8"),
    "one layer twice, numbered": (
        lambda: Explicit([8, 8], [0.5, 0.4]).stops(32),
        "8 follows layer 8",
    ),
    "growing within a layer": (lambda: Explicit([0.2, 0.21], [0.2, 0.5]).stops(6), "1 follows"),
    "first after last": (lambda: Linear(first=24, last=8).stops(32), "first=24.*last=8"),
    "shares that meet": (lambda: Cosine(first=0.5, last=0.51).stops(32), "layer 16 .*layer 16"),
    "no step": (lambda: Cosine(every=0), "every.*at least 1, not 0"),
    "text as first": (lambda: Linear(first="8"), "first.*'8'"),
    "last beyond": (lambda: Linear(last=40).stops(32), "last 40 is outside"),
    "stop below 0": (lambda: Stop(-1, 0.5), "layer.*-1"),
    "stop with a count": (lambda: Stop(1, 288), "share.*288"),
    "place of nothing": (lambda: layer_or_share(None), "not None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_says_the_value_and_the_way_out(case):
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build()


def test_unknown_option_is_named():
    with pytest.raises(TypeError, match="no option 'stage'; did you mean 'stages'"):
        schedulers.build("pyramid", stage=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tr.Explicit(range(1_000_000), [0.5] * 1_000_000), "1,000,000 entries"),
        (lambda: tr.Single(layer=10**400), "outside a decoder of 32 layers"),
        (lambda: tr.Single(layer=-(10**400)), "layer must be a layer"),
        (lambda: tr.Single(layer=-(10**5000)), "thousands of digits"),
        (lambda: tr.Single(keep=10**400), "keep must be a number between 0 and 1"),
        (lambda: tr.Single(layer=float("nan")), "layer must be a layer"),
        (lambda: tr.Single(keep=float("nan")), "keep must be a number between 0 and 1"),
        (lambda: tr.solve({**SIZES, "num_hidden_layers": 10**6}, visual=9, flops=0.5), "10,000"),
    ],
)
def test_numbers_that_nobody_can_mean_are_refused_at_once(make, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make().stops(32)
    assert len(str(caught.value)) < 300


SIZES = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "vocab_size": 9,
}
