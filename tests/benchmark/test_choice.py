"""What choosing the tokens takes by itself, against how many there are and how many stay.

The engine's own work (scoring, choosing, gathering) at one stop of a shallow decoder, for every
registered method: how a method's work grows with v and k does not depend on the depth.
"""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tests.benchmark.prefill import Trial
from tests.benchmark.sizes import ENGINE, SMALL, SMOKE, VISUAL, Size, prompt
from tests.benchmark.test_methods import BARE, METHODS
from tokenreduce.benchmarking.synthetic import with_synthetic_tower

SHALLOW = Size(4, SMALL.width)
LAYER = 2
COUNTS = VISUAL if SMOKE else (144, 576, 2880)
KEEPS = (0.5, 0.125)
ROUNDS = 2 if SMOKE else 3


def test_every_registered_method_is_measured() -> None:
    """Who reduces anything inside a model, and nobody by hand."""
    named = {name for name, kind in tr.strategies.items() if kind.__module__.startswith("tokenr")}
    assert named - set(METHODS) == {"none", "downsample"}
    assert len(METHODS) >= 19


@pytest.mark.filterwarnings("ignore::tokenreduce.ReductionWarning")
@pytest.mark.benchmark(timer=ENGINE.read)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("visual", COUNTS)
def test_a_choice(benchmark: Any, visual: int, keep: float, name: str) -> None:
    benchmark.group = f"choice of {keep} of {visual}"
    strategy, stop = tr.strategies.build(name), tr.Single(layer=LAYER, keep=keep)
    shown = prompt(visual).pictures(strategy.needs)
    trial = Trial(
        SHALLOW, visual, strategy, stop, adapter=with_synthetic_tower(BARE), pictures=shown
    )
    try:
        trial.warm_up()
        benchmark.pedantic(trial.reduced, rounds=ROUNDS)
        report = trial.reduction.report
        benchmark.extra_info.update(
            model=str(SHALLOW),
            method=name,
            visual_tokens=visual,
            keep=keep,
            kept=report.stops[0]["kept"][0],
            engine_ms=1e3 * min(trial.inside),
        )
    finally:
        trial.close()
    assert report.stops[0]["kept"][0] <= max(round(visual * keep), 1)
    assert min(trial.inside) > 0
