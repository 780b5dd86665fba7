"""Prefill, engine's share of it, and decoding: reduced against unreduced, in turn, on one thread.

Off by default. `pytest --benchmark-only tests/benchmark` runs it;
`TOKENREDUCE_BENCHMARK=smoke` makes it small.
"""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tests.benchmark.prefill import Trial
from tests.benchmark.sizes import CLOCK, ENGINE, SMALL, SMOKE, VISUAL, WIDE, Size

ASKED = {"saved_time_over_saved_flops": 0.95, "added_share": 0.03}
"""Of `pyramid_drop` with its paper's schedule; `added` is scoring and gathering, less the keys that
the layers are spared to project."""
ROUNDS = 3 if SMOKE else 7
SHORT_ROUNDS = 3 if SMOKE else 16  # short prefills vary most from round to round
SCORING_ROUNDS = 3 if SMOKE else 4

COMPARED: dict[str, tuple[tr.Strategy, tr.Scheduler | None]] = {
    "pyramid_drop": (tr.PyramidDrop(), None),
    "fastv-last": (tr.FastV(), None),
    "fastv-received": (tr.FastV(score="received"), None),
    "random": (tr.Random(), None),
    "stride": (tr.Stride(), None),
    "pooling": (tr.Pooling(), None),
    "vtw": (tr.VTW(), None),
}
"""Every strategy under its own schedule; None is that."""


@pytest.fixture
def trial(request):
    made = Trial(*request.param)
    yield made
    made.close()


def interleaved(benchmark: Any, trial: Trial, rounds: int) -> dict[str, Any]:
    """Rounds of unreduced and reduced prefills in turn; pytest-benchmark times the reduced ones."""
    trial.warm_up()
    benchmark.pedantic(trial.reduced, setup=trial.unreduced, rounds=rounds)
    facts = trial.facts()
    benchmark.extra_info.update(facts)
    return facts


@pytest.mark.benchmark(group="prefill", timer=CLOCK.now)
@pytest.mark.parametrize(
    "trial",
    [
        pytest.param((size, visual, tr.PyramidDrop()), id=f"{size}-{visual}")
        for size in (SMALL, WIDE)
        for visual in VISUAL
    ],
    indirect=True,
)
def test_prefill(benchmark, trial):
    rounds = SHORT_ROUNDS if trial.visual == VISUAL[0] else ROUNDS
    facts = interleaved(benchmark, trial, rounds)
    met = {
        "saved_time_over_saved_flops": facts["causal"]["saved_time_over_saved_flops"],
        "added_share": facts["added_share"],
    }
    benchmark.extra_info["asked"] = ASKED
    if SMOKE:
        return
    assert met["saved_time_over_saved_flops"] >= ASKED["saved_time_over_saved_flops"], met
    assert met["added_share"] <= ASKED["added_share"], met


def _strategies(size: Size, visual: int) -> list[Any]:
    return [
        pytest.param((size, visual, *choice), id=f"{size}-{visual}-{name}")
        for name, choice in COMPARED.items()
    ]


@pytest.mark.benchmark(group="scoring", timer=ENGINE.read)
@pytest.mark.parametrize(
    "trial",
    [case for size in (SMALL, WIDE) for case in _strategies(size, VISUAL[0])],
    indirect=True,
)
def test_scoring(benchmark, trial):
    interleaved(benchmark, trial, SCORING_ROUNDS)
