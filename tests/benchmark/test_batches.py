"""Time and bytes of batches of 1 to 16 samples: prefill, decoding steps, KV cache, peak memory.

`task=benchmark` measures in the same rounds; pytest-benchmark times the reduced turns.
"""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tests.benchmark.sizes import CLOCK, SMALL, SMOKE, VISUAL, models, prompt
from tokenreduce.benchmarking.rounds import Candidate, Race

BATCHES = (1, 2, 4, 8, 16)
COUNT = 144 if SMOKE else VISUAL[0] // 2
ROUNDS = 2 if SMOKE else 4
STEPS = 2 if SMOKE else 8


@pytest.mark.benchmark(group="batches", timer=CLOCK.now)
@pytest.mark.parametrize("method", ["pyramid_drop", "stride"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch(benchmark: Any, batch: int, method: str) -> None:
    model, _ = models(SMALL)
    one = Candidate(method, tr.Recipe.parse(method))
    race = Race(model, prompt(COUNT, batch), [one], STEPS)
    plain, reduced = race.lanes
    race.warm_up()
    benchmark.pedantic(lambda: race.turn(reduced), setup=lambda: race.turn(plain), rounds=ROUNDS)
    race.weigh()
    (row,) = race.rows()
    benchmark.extra_info.update(row | {"model": str(SMALL), "clock": CLOCK.name})
    assert reduced.report is not None
    assert row["kv_bytes"] == reduced.report.kv_bytes < row["kv_bytes_full"]
    if not SMOKE:
        assert row["peak_bytes"] < row["peak_bytes_full"]
