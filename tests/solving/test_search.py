"""solve: the largest share within a target, or the least that a rule can reach."""

from __future__ import annotations

import dataclasses

import pytest

from tokenreduce.cost import DecoderShape, average_tokens, cost
from tokenreduce.scheduler import schedulers
from tokenreduce.schedulers import Explicit, Pyramid, Single
from tokenreduce.solving.search import FREE, solve

SHAPE = DecoderShape(32, 4096, 11008, 32, 32, 128, 32000)
FALL = {"first": 1, "last": 12, "every": 2}
OPTIONS = {"single": {"layer": 2}, "linear": FALL, "cosine": FALL}


def spent(schedule, name: str, text: int = 0) -> float:
    if name == "average":
        return average_tokens(schedule.stops(32), 32, 576)
    price = cost(SHAPE, schedule, 576, text)
    return price.share if name == "flops" else price.kv_bytes


def raised(schedule, by: float):
    """The same schedule with a little more of what was solved for."""
    free = FREE[schedulers.name_of(schedule)]
    value = getattr(schedule, free)
    if free == "keeps":
        ratio = value[0] + by
        return Explicit(schedule.layers, [ratio ** (i + 1) for i in range(len(value))])
    return dataclasses.replace(schedule, **{free: min(1.0, value + by)})


@pytest.mark.parametrize("rule", FREE)
@pytest.mark.parametrize("target", [{"average": 300}, {"flops": 0.5}, {"kv_bytes": 140_000_000}])
@pytest.mark.parametrize("text", [0, 60])
def test_meets_the_target_and_no_larger_share_does(rule, target, text):
    ((name, limit),) = target.items()
    found = solve(SHAPE, visual=576, text=text, rule=rule, **target, **OPTIONS.get(rule, {}))
    assert schedulers.name_of(found) == rule
    assert spent(found, name, text) <= limit
    assert spent(raised(found, 1 / 400), name, text) > limit


def test_pyramid_drop_at_192_tokens():
    """The layer list 8/16/24 meets an average of 192 of 576 at a ratio of a quarter, just over."""
    found = solve(SHAPE, visual=576, average=192)
    assert found == Pyramid(stages=4, ratio=0.254)
    assert average_tokens(found.stops(32), 32, 576) == 192
    unrounded = 8 * 576 * sum(0.253**s for s in range(4)) / 32
    assert unrounded < 192 < 8 * 576 * sum(0.254**s for s in range(4)) / 32


@pytest.mark.parametrize("average", [128, 64])
@pytest.mark.parametrize("rule", ["pyramid", "explicit"])
def test_pyramid_drop_at_128_and_64_is_infeasible(average, rule):
    message = (
        "infeasible: the minimum is 144 visual tokens per layer with stops at layers 8, 16, 24"
    )
    with pytest.raises(ValueError, match=message):
        solve(SHAPE, visual=576, average=average, rule=rule)


def test_the_minimum_itself_is_feasible():
    found = solve(SHAPE, visual=576, average=144)
    assert [stop.count(576) for stop in found.stops(32)] == [0, 0, 0]


def test_earlier_stops_make_64_feasible():
    found = solve(SHAPE, visual=576, average=64, rule="explicit", layers=[2, 6, 15])
    assert average_tokens(found.stops(32), 32, 576) == 64


def test_no_reduction_is_the_largest_target():
    assert solve(SHAPE, visual=576, average=576).ratio == 1
    assert solve(SHAPE, visual=576, flops=1).ratio == 1
    assert solve(SHAPE, visual=576, kv_bytes=1.0, rule="single") == Single(2, 1.0)


def test_cache_as_a_share_or_in_bytes():
    full = cost(SHAPE, (), 576, 60).kv_bytes
    half = solve(SHAPE, visual=576, text=60, kv_bytes=0.5)
    assert half == solve(SHAPE, visual=576, text=60, kv_bytes=full // 2)
    assert cost(SHAPE, half, 576, 60).kv_bytes <= full / 2


def test_rounding_and_convention_are_the_callers():
    floor = solve(SHAPE, visual=576, average=200, rounding="floor")
    assert floor.rounding == "floor"
    assert average_tokens(floor.stops(32), 32, 576) <= 200
    wide = DecoderShape(28, 3584, 18944, 28, 4, 128, 152064)
    published = solve(wide, visual=2880, flops=0.5, convention="F3")
    assert cost(wide, published, 2880, convention="F3").share <= 0.5
    assert published != solve(wide, visual=2880, flops=0.5, convention="matmul")


REFUSED = {
    "no target": ({}, "exactly one target out of average, flops, kv_bytes, not none"),
    "two targets": ({"average": 1, "flops": 0.5}, "not average and flops"),
    "unknown rule": ({"average": 200, "rule": "cosin"}, "'cosin'.*did you mean 'cosine'"),
    "the unknown given": ({"average": 200, "ratio": 0.5}, "ratio is what solve finds"),
    "more than all": ({"average": 577}, "between 0 and 576 visual.*not 577"),
    "percent": ({"flops": 45}, "between 0 and 1.*not 45"),
    "truth": ({"flops": True}, "not True"),
    "text": ({"flops": "0.5"}, "not '0.5'"),
    "negative": ({"kv_bytes": -1}, "not -1"),
    "no visual tokens": ({"average": 1, "visual": 0}, "visual.*at least 1, not 0"),
    "cache below the text": ({"kv_bytes": 0.01, "text": 60}, "minimum is .* bytes of KV cache"),
    "flops": ({"flops": 0.1}, "minimum is 0.2.* of the unreduced FLOPs"),
    "many stops": ({"average": 9, "rule": "linear"}, "9, 10, 11, ..., 24 of 32, even with keep"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_says_why(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        solve(SHAPE, **{"visual": 576, **options})


def test_options_of_other_rules_are_refused():
    with pytest.raises(TypeError, match="'pyramid' has no option 'layers'"):
        solve(SHAPE, visual=576, average=200, layers=[2])
