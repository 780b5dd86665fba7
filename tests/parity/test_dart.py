"""DART, against the recorded choices of a port of it in ModelTC/llmc."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.testing.choices import kept_rows

from .choices import Choice, choices, own, tokens

CASES = choices("dart")


@dataclass
class AsRecorded(tr.DART):
    """Pivots take in the order of a Python set of their positions, as in the original."""

    start: int = 0
    behind: int = 0
    before: int = 0
    seen: list[list[int]] = field(default_factory=list)

    def turns(self, image: Tensor, text: Tensor) -> Tensor:
        """`text` counts the text tokens: `before` of them stand before the picture."""
        rows = []
        for pictured, written in zip(image.tolist(), text.tolist(), strict=True):
            at = [i + self.start for i in pictured]
            at += [i - self.before + self.behind for i in written]
            self.seen.append(list(set(at)))
            rows.append([at.index(i) for i in self.seen[-1]])
        return torch.tensor(rows)


def strategy(case: Choice, kind: type[tr.DART] = AsRecorded) -> tr.DART:
    s = case.settings
    pivots = s["pivot_image_token"], s["pivot_text_token"]
    if kind is not AsRecorded:
        return kind(*pivots)
    start = s["image_token_start_index"]
    return AsRecorded(*pivots, start, start + s["image_token_length"], start)


def given(case: Choice, text_before: bool = True) -> tr.Tokens:
    """The evidence that was recorded, in one row: text, picture, text."""
    s, t = case.settings, case.tensors
    start, n = s["image_token_start_index"], s["image_token_length"]
    states = t["last_layer_state"]
    # the larger case holds the sizes of its keys in place of the keys
    keys = t["key_states"] if "key_states" in t else t["key_l1"][None, None, :, None]
    length = states.shape[1]
    visual = torch.arange(start, start + n)
    text = torch.tensor([i for i in range(length) if not start <= i < start + n])
    return tokens(
        states[:, visual],
        normed=states[:, visual],
        text_normed=states[:, text],
        keys_before=keys[:, :, visual],
        text_keys_before=keys[:, :, text],
        text_behind=(text >= start)[None],
    )


def kept(case: Choice, by: tr.DART) -> list[int]:
    """Positions in the whole sequence, as they were recorded."""
    plan = by.plan(given(case), [case.settings["n_retained"]])
    return [i + case.settings["image_token_start_index"] for i in kept_rows(plan)[0].tolist()]


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("dart")
    assert len(own("dart")) == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_states_give_the_recorded_tokens(case: Choice) -> None:
    by = strategy(case)
    assert kept(case, by) == case.tensors["retained_sorted"].tolist()
    assert kept(case, by) == case.settings["retained_abs_sorted"]
    assert by.seen[0] == case.settings["pivot_processing_order"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_budget_of_the_original_is_the_even_one(case: Choice) -> None:
    """Its count is one share for each pivot, beside the picture's pivots."""
    s = case.settings
    image, text = s["pivot_image_token"], s["pivot_text_token"]
    assert s["n_retained"] == image + s["token_topk_per_pivot"] * (image + text)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_own_order_of_the_pivots_differs_in_a_few_tokens(case: Choice) -> None:
    ours, theirs = kept(case, strategy(case, tr.DART)), case.settings["retained_abs_sorted"]
    pivots = case.settings["image_pivots_abs"]
    assert set(pivots) <= set(ours)
    assert 0 < len(set(ours) - set(theirs)) <= 0.15 * len(theirs)


def test_what_is_left_over_goes_to_the_first_pivots() -> None:
    case = CASES[0]
    even = case.settings["n_retained"]
    for extra in range(1, 8):
        plan = strategy(case).plan(given(case), [even + extra])
        assert plan.keep.shape == (1, even + extra)


def test_impossible_pivots_are_refused() -> None:
    for image, text in ((-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="image_pivots"):
            tr.DART(image, text)
