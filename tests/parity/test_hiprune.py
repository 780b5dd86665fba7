"""HiPrune, against the recorded runs of Danielement321/HiPrune."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.geometry import Picture, places
from tokenreduce.tokens import at_layer

from .choices import Choice, choices, llava, own, prompt, tokens

CASES = choices("hiprune")
PARITY = {
    "clip_k128_b2_budget_split": ("kept, anchors, buffers", "kept, both attentions 1e-6"),
    "clip_k192_b1": ("kept, anchors, buffers", "kept, both attentions 1e-6"),
    "qwen_g11x15_r0223": ("kept, anchors, buffers", "no pixels recorded"),
    "qwen_g12x10_scale_defect": ("kept, one fewer than asked for", "no pixels recorded"),
    "qwen_g9x7_corner_anchors_alpha08": ("kept, anchors, buffers", "no pixels recorded"),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table.

All under `as_published`.
"""
PIXELS = [case for case in CASES if "pixel_values" in case.tensors]


def scores(case: Choice) -> tuple[Tensor, Tensor]:
    """(b, v) attention in the middle and at the end of the tower."""
    middle, end = (case.tensors[f"{name}_attention"] for name in ("shallow", "deep"))
    return middle.view(-1, middle.shape[-1]), end.view(-1, end.shape[-1])


def given(case: Choice, strategy: tr.HiPrune) -> tr.Tokens:
    """The recorded tokens on their grid."""
    middle, end = scores(case)
    grid = case.settings.get("grid") or case.settings["grid_merged"]
    evidence = {at_layer("tower_attention", strategy.layer): middle[:, None]}
    made = tokens(torch.zeros(*end.shape, 4), tower_attention=end[:, None], **evidence)
    rows = [[Picture.grid(*grid)] for _ in end]
    return replace(made, places=places(rows, torch.device("cpu")))


def strategy_of(case: Choice, as_published: bool = True) -> tr.HiPrune:
    layer = case.settings.get("object_layer", 16) - 1  # there, layers count from 1
    return tr.HiPrune(case.settings["alpha"], layer, as_published)


def expected(case: Choice) -> list[list[int]]:
    kept = case.settings["kept_sorted"]
    return kept if isinstance(kept[0], list) else [kept]


def rows(plan: tr.Plan) -> list[list[int]]:
    valid = torch.ones_like(plan.keep, dtype=torch.bool) if plan.valid is None else plan.valid
    return [keep[there].tolist() for keep, there in zip(plan.keep, valid, strict=True)]


def budget(case: Choice) -> list[int]:
    k = case.settings.get("k_per_image", case.settings.get("k"))
    return [k] * len(scores(case)[0])


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("hiprune") == {f"hiprune/{x}" for x in PARITY}
    assert len(PIXELS) >= 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_attention_gives_the_recorded_tokens(case: Choice) -> None:
    strategy = strategy_of(case)
    assert rows(strategy.plan(given(case, strategy), budget(case))) == expected(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_anchors_and_buffers_are_the_recorded_ones(case: Choice) -> None:
    """With as many registers as they leave none."""
    strategy = strategy_of(case)
    made = given(case, strategy)
    plan = strategy.plan(made, budget(case))
    assert plan.score is not None
    for i, score in enumerate(plan.score):
        suffix = f".{i}" if "anchors_order.0" in case.tensors else ""
        both = case.tensors[f"anchor_and_buffer_sorted{suffix}"]
        anchors = case.tensors[f"anchors_order{suffix}"]
        lead = score - made["tower_attention"][i, 0]
        assert (lead > 1).nonzero()[:, 0].tolist() == both.tolist()
        assert (lead > 3).nonzero()[:, 0].tolist() == anchors.sort().values.tolist()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rule_of_the_paper_keeps_the_whole_budget(case: Choice) -> None:
    """Neighbours do not wrap, and no place is lost; inside of a picture the same tokens stay."""
    strategy = strategy_of(case, as_published=False)
    made = given(case, strategy)
    found = rows(strategy.plan(made, budget(case)))
    assert [len(row) for row in found] == budget(case)
    assert all(len(set(row)) == len(row) for row in found)
    at, middle = made.places, scores(case)[0]
    number = round(budget(case)[0] * strategy.alpha / 5)
    for i, row in enumerate(found):
        for anchor in middle[i].argsort(descending=True, stable=True)[:number]:
            far = (at.row[i] - at.row[i, anchor]).abs() + (
                at.column[i] - at.column[i, anchor]
            ).abs()
            assert set((far <= 1).nonzero()[:, 0].tolist()) <= set(row)


@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_a_whole_model_keeps_the_recorded_tokens(case: Choice) -> None:
    """From the pixels on: both attentions and the tokens, with the recorded tower in a LLaVA."""
    case.settings["vision_select_layer"] = -2
    strategy = Watched(case.settings["alpha"], case.settings["object_layer"] - 1, True)
    schedule = tr.Single(0, budget(case)[0] / 576)
    model = llava(case)
    with tr.reduce(model, strategy, schedule) as reduction, torch.no_grad():
        model(**prompt(case))
    assert [row.tolist() for row in reduction.kept[0]] == expected(case)
    for seen, recorded in zip(strategy.seen, scores(case), strict=True):
        assert (seen - recorded).abs().max() <= 1e-6


@pytest.mark.parametrize("case", PIXELS[:1], ids=str)
def test_another_layer_is_noticed(case: Choice) -> None:
    case.settings["vision_select_layer"] = -2
    strategy = tr.HiPrune(case.settings["alpha"], case.settings["object_layer"], True)
    model = llava(case)
    with (
        tr.reduce(model, strategy, tr.Single(0, budget(case)[0] / 576)) as reduction,
        torch.no_grad(),
    ):
        model(**prompt(case))
    assert [row.tolist() for row in reduction.kept[0]] != expected(case)


def test_the_published_layer_is_the_usual_one() -> None:
    assert at_layer("tower_attention", tr.HiPrune().layer) in tr.HiPrune().needs
    assert int(24 * tr.HiPrune().layer) == 8


def test_neighbours_stay_in_their_tile() -> None:
    """An anchor in a corner: its neighbours are of the same tile, and of no other row's end."""
    strategy = tr.HiPrune(alpha=1.0)
    two = [Picture.join([Picture.grid(3, 3), Picture.grid(3, 3, tile=1)])]
    middle = torch.zeros(1, 1, 18)
    middle[0, 0, 9] = 1.0  # the first of the second tile
    end = torch.linspace(0.9, 0.1, 18)[None, None]
    made = replace(
        tokens(
            torch.zeros(1, 18, 4),
            tower_attention=end,
            **{at_layer("tower_attention", strategy.layer): middle},
        ),
        places=places([two], torch.device("cpu")),
    )
    assert rows(strategy.plan(made, [5])) == [[0, 1, 9, 10, 12]]
    assert rows(tr.HiPrune(alpha=1.0, as_published=True).plan(made, [5])) == [[6, 8, 9, 10, 12]]
    assert rows(strategy.plan(made, [2])) == [[0, 1]]  # round(0.4): no anchor


def test_separators_are_refused_as_published() -> None:
    strategy = tr.HiPrune(as_published=True)
    made = replace(
        tokens(
            torch.zeros(1, 4, 4),
            tower_attention=torch.rand(1, 1, 4),
            **{at_layer("tower_attention", strategy.layer): torch.rand(1, 1, 4)},
        ),
        separators=1,
    )
    with pytest.raises(ValueError, match="rows end in separators"):
        strategy.plan(made, [2])


@pytest.mark.parametrize("options", [{"alpha": 1.5}, {"layer": -1}, {"layer": 1.5}])
def test_odd_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        tr.HiPrune(**options)  # type: ignore[arg-type]


class Watched(tr.strategies["hiprune"]):  # type: ignore[misc]
    """Notes what it ranks by."""

    def plan(self, tokens: tr.Tokens, budget: list[int]) -> tr.Plan:
        names = (at_layer("tower_attention", self.layer), "tower_attention")
        self.seen = [tokens[name].mean(dim=1) for name in names]
        return super().plan(tokens, budget)
