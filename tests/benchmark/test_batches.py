"""Time and bytes of batches of 1 to 16 samples: prefill, decoding steps, KV cache, peak memory.

`task=benchmark` measures in the same rounds; pytest-benchmark times the reduced turns.
"""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tests.benchmark.sizes import CLOCK, SMALL, SMOKE, VISUAL, models, prompt
from tokenreduce.benchmarking.rounds import Candidate, Interleaved

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
    run = Interleaved(model, prompt(COUNT, batch), [one], STEPS)
    plain, reduced = run.arms
    run.warm_up()
    benchmark.pedantic(
        lambda: run.run_arm(reduced),
        setup=lambda: run.run_arm(plain),
        rounds=ROUNDS,
    )
    run.measure_memory()
    (row,) = run.rows()
    benchmark.extra_info.update(row | {"model": str(SMALL), "clock": CLOCK.name})
    assert reduced.report is not None
    assert row["kv_bytes"] == reduced.report.kv_bytes < row["kv_bytes_full"]
    if not SMOKE:
        assert row["peak_bytes"] < row["peak_bytes_full"]
