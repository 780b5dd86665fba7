"""What every registered method costs at one prompt: 16 layers of width 512, 2,880 visual tokens.

The share of a reduced prefill that scoring and gathering take, each method under its own schedule.
The decoder is bare: what a method reads of the vision tower is handed in with the geometry (a whole
picture of 24 x 24 patches, then a grid of 48 x 48), and costs the tower's part elsewhere.
"""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tests.benchmark.prefill import Trial
from tests.benchmark.sizes import ENGINE, SMALL, SMOKE, TEXT, VISUAL, Size, prompt
from tokenreduce.benchmarking.synthetic import with_synthetic_tower

DEEP = Size(8, 128) if SMOKE else SMALL
ROUNDS = 3 if SMOKE else 4
ASKED = 0.05
BARE = tr.adapters["decoder"]()
METHODS = [
    name
    for name, strategy in tr.strategies.items()
    if strategy.reduces and strategy.__module__.startswith("tokenreduce.") and name != "downsample"
]


@pytest.mark.filterwarnings("ignore::tokenreduce.ReductionWarning")
@pytest.mark.benchmark(group="methods", timer=ENGINE.read)
@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_costs(benchmark: Any, name: str) -> None:
    strategy = tr.strategies.build(name)
    shown = prompt(VISUAL[-1]).pictures(strategy.needs)
    trial = Trial(DEEP, VISUAL[-1], strategy, adapter=with_synthetic_tower(BARE), pictures=shown)
    try:
        trial.warm_up()
        benchmark.pedantic(trial.reduced, setup=trial.unreduced, rounds=ROUNDS)
        facts = trial.facts() | {"method": name, "asked": ASKED}
    finally:
        trial.close()
    benchmark.extra_info.update(facts)
    assert facts["engine_ms"] > 0
    assert facts["tokens_per_layer"][-1] < VISUAL[-1] + TEXT
