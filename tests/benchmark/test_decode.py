"""Decoding after a reduced prompt against decoding after the whole: shorter caches, idle hooks."""

from __future__ import annotations

import pytest

from tests.benchmark.decoding import Decoding
from tests.benchmark.sizes import CLOCK, SMALL, SMOKE, TINY, VISUAL, WIDE

STEPS = 10 if SMOKE else 80
ASKED = {"step_ratio": 1.0}

CASES = [
    pytest.param(size, visual, 1, positions, id=f"{size}-{visual}-{positions}")
    for size in (SMALL, WIDE)
    for visual in VISUAL[:: len(VISUAL) - 1 or 1]
    for positions in ("compact", "keep")
]
OVERHEAD = [
    pytest.param(TINY, VISUAL[0], batch, positions, id=f"{TINY}-{VISUAL[0]}-{batch}-{positions}")
    for batch in (1, 2)
    for positions in ("compact", "keep")
]


def steps(benchmark, size, visual, batch, positions):
    trial = Decoding(size, visual, batch, positions)
    try:
        trial.warm_up(5)
        benchmark.pedantic(trial.reduced, setup=trial.unreduced, rounds=STEPS)
        benchmark.extra_info.update(trial.facts())
    finally:
        trial.close()
    return benchmark.extra_info["time_ratio"]


@pytest.mark.benchmark(group="decode", timer=CLOCK.now)
@pytest.mark.parametrize(("size", "visual", "batch", "positions"), CASES)
def test_decode(benchmark, size, visual, batch, positions):
    ratio = steps(benchmark, size, visual, batch, positions)
    benchmark.extra_info["asked"] = ASKED
    if not SMOKE:
        assert ratio["of_minima"] <= ASKED["step_ratio"], ratio


@pytest.mark.benchmark(group="decode", timer=CLOCK.now)
@pytest.mark.parametrize(("size", "visual", "batch", "positions"), OVERHEAD)
def test_overhead(benchmark, size, visual, batch, positions):
    """A model so small that hooks show: reported, not judged."""
    steps(benchmark, size, visual, batch, positions)
