"""DivPrune, against the recorded choices of vbdi/divprune."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.choice import candidates
from tokenreduce.strategies.divprune import farthest_first

from .choices import Choice, choices, own, tokens

CASES = choices("divprune")
PARITY = {
    "n100_r0255": ("kept, order, count", "no pixels recorded"),
    "n37_r05": ("kept, order, count", "no pixels recorded"),
    "n576_r0098": ("kept, order, count", "no pixels recorded"),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table."""


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("divprune")
    assert len(own("divprune")) == 3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_features_give_the_recorded_tokens(case: Choice) -> None:
    features, k = case.tensors["features"][None], case.settings["n_keep"]
    assert tr.DivPrune().plan(tokens(features), [k]).keep.tolist() == [case.settings["kept_sorted"]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_chosen_in_the_recorded_order(case: Choice) -> None:
    given, k = tokens(case.tensors["features"][None]), case.settings["n_keep"]
    order = farthest_first(given.hidden, candidates(given), k)[0].argsort(descending=True)
    assert order[:k].tolist() == case.settings["greedy_order"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_schedule_asks_for_the_recorded_number(case: Choice) -> None:
    stop = tr.Single(0, case.settings["ratio"]).stops(8)[0]
    assert stop.count(case.settings["n"]) == case.settings["n_keep"]


def test_cases_together_are_chosen_as_alone() -> None:
    longest = max(case.settings["n"] for case in CASES)
    rows = [case.tensors["features"] for case in CASES]
    x = torch.stack([torch.cat([r, 9 * torch.ones(longest - len(r), r.shape[1])]) for r in rows])
    among = torch.arange(longest) < torch.tensor([len(r) for r in rows])[:, None]
    order = farthest_first(x, among, longest).argsort(dim=1, descending=True)
    for row, case in zip(order, CASES, strict=True):
        assert row[: case.settings["n_keep"]].tolist() == case.settings["greedy_order"]


def test_equal_tokens_are_chosen_once() -> None:
    """Where the original picks the same token again and again."""
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 4, 1)
    for k in range(17):
        kept = tr.DivPrune().plan(tokens(x), [k]).keep[0].tolist()
        assert len(set(kept)) == k
        assert len({i % 4 for i in kept}) == min(k, 4)
