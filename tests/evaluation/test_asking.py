"""A model whose logits are no numbers has no answer and no probabilities, and says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.untrained import untrained
from tokenreduce.config import build_reader, compose
from tokenreduce.evaluation.asking import Protocol, ask
from tokenreduce.evaluation.conditions import FULL
from tokenreduce.evaluation.divergence import jensen_shannon, kullback_leibler
from tokenreduce.inference.loaded import Loaded


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return untrained()


def rows(loaded: Loaded) -> list[Any]:
    items = build_reader(compose()).items(2, seed=0)
    starts = {item.kind: {"yes": [3], "no": [4]} for item in items}
    return list(ask(loaded, FULL, items, Protocol(2, 2, "exact", starts)))


def test_logits_that_are_no_numbers(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenreduce.evaluation.asking.is_right", lambda *given: True)
    for row in rows(loaded):
        assert row["correct"] is True
        assert all(0 <= p <= 1 for p in row["probabilities"].values())
    broken = copy.deepcopy(loaded.model)
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = float("nan")
    for row in rows(Loaded(broken, loaded.processor, "here", True)):
        assert row["correct"] is False  # whatever its answer happens to be
        assert row["probabilities"] == {"yes": None, "no": None}


@pytest.mark.parametrize("divergence", [jensen_shannon, kullback_leibler])
def test_a_profile_takes_nan_for_no_agreement(divergence: Any) -> None:
    sure = torch.tensor([0.5, 0.5, 0.0]).log()
    assert divergence(sure, sure) == 0
    assert divergence(sure, torch.full((3,), float("nan"))).isnan()
    assert divergence(torch.full((3,), float("nan")), sure).isnan()
