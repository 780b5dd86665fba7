"""FastV, against the recorded runs of pkunlp-icler/FastV (four code paths of its own)."""

from __future__ import annotations

import pytest
import torch

from .cases import Case, cases
from .compare import differences, excess, gap
from .decoding import decode, generate, recordings, step_differences
from .deviations import PARTIAL, deviates, sound
from .outcome import run

ATTENTIONS = ("sdpa", "eager")
FORWARD = sound(*cases("fastv", "forward"))
GENERATE = sound(*cases("fastv", "generate"))
TESTED = {str(case) for case in FORWARD + GENERATE}

redrawn = [case for case in cases("fastv", "generate") if deviates(case)]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", FORWARD + GENERATE, ids=str)
def test_prefill_is_the_recorded_one(case: Case, attention: str) -> None:
    model = case.model(attention)
    with torch.no_grad():
        found = differences(case, run(case, model), model)
    assert not excess(found)
    expected = {"kept", "lengths", "reported", "scores", "positions"}
    expected |= {"hidden", "logits"} if case.kind == "forward" else set()
    expected |= {"keys", "values"} if "prefill_cache.0.key" in case.tensors else set()
    assert found.keys() >= expected


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", GENERATE, ids=str)
def test_generation_is_the_recorded_one(case: Case, attention: str) -> None:
    """With a cache ranked once; without one ranked anew at every step, by the newest token."""
    model, count = case.model(attention), 0
    for recorded in recordings(case):
        decoded = decode(case, model, recorded)
        assert not excess(step_differences(case, model, recorded, decoded))
        if recorded.cache:
            assert all(kept == case.kept for kept in decoded.kept)
        else:
            assert len(recorded.kept) == len(decoded.kept) == len(recorded.scores)
        count += 1
    assert count


@pytest.mark.parametrize("case", FORWARD + GENERATE, ids=str)
def test_recorded_lengths_are_the_rule_that_the_cache_is_held_to(case: Case) -> None:
    steps = case.settings.get("kv_len_per_layer_per_step", [])
    steps = steps or [case.settings[k] for k in ("kv_len_per_layer",) if k in case.settings]
    for step, lengths in enumerate(steps):
        ruled = [case.hidden_length(layer) + step for layer in range(len(lengths))]
        wrong = [i for i, (a, b) in enumerate(zip(lengths, ruled, strict=True)) if a != b]
        assert wrong == ([case["K"] - 1] if str(case) in PARTIAL else [])


@pytest.mark.parametrize("case", redrawn, ids=str)
def test_a_cache_is_reduced_once_and_for_good(case: Case) -> None:
    """The original redraws its mask over a full cache; ours starts alike and stays short."""
    model, (recorded,) = case.model(), recordings(case)
    with torch.no_grad():
        assert not excess(differences(case, run(case, model), model))
    decoded = generate(case, model, len(recorded.tokens))
    assert gap(decoded.logits[0], recorded.logits[0]) <= 1e-4
    assert decoded.tokens[0] == recorded.tokens[0]
    assert all(kept == case.kept for kept in decoded.kept)
    assert decoded.cached[-1][case["K"]] == case.hidden_length(case["K"]) + len(decoded.tokens) - 1
