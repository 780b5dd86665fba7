"""VTW, against the recorded run of lzhxmu/VTW."""

from __future__ import annotations

import pytest
import torch

from tokenreduce.engine.call import cache_of

from .cases import Case, cases
from .compare import differences, excess
from .decoding import decode, recordings, step_differences
from .deviations import sound
from .outcome import run

ATTENTIONS = ("sdpa", "eager")
FORWARD = sound(*cases("vtw"))
GENERATE = sound(*cases("vtw", "generate"))
TESTED = {str(case) for case in FORWARD}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_prefill_is_the_recorded_one(case: Case, attention: str) -> None:
    model = case.model(attention)
    with torch.no_grad():
        outcome = run(case, model)
        found = differences(case, outcome, model)
    assert not excess(found)
    assert found.keys() >= {"kept", "lengths", "reported", "positions", "hidden", "logits"}
    held = [layer.keys.shape[2] for layer in cache_of(outcome.output).layers]
    assert held == case["kv_len_per_layer"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", GENERATE, ids=str)
def test_generation_is_the_recorded_one(case: Case, attention: str) -> None:
    model, (recorded,) = case.model(attention), recordings(case)
    decoded = decode(case, model, recorded)
    assert not excess(step_differences(case, model, recorded, decoded))
