"""VisPruner, against the recorded runs of Theia-4869/VisPruner."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr

from .choices import Choice, choices, llava, own, prompt, tokens, tower

CASES = choices("vispruner")
PARITY = {
    "k128_r0_b1": ("kept", "not compared, see below"),
    "k32_r1_b1": ("kept", "kept, attention 1e-6"),
    "k64_r05_b2": ("kept", "not compared, see below"),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table."""
PIXELS = [case for case in CASES if case.settings["important_ratio"] == 1]
"""Where nothing but the attention decides: rounding cannot reorder the queue."""


def features(case: Choice) -> torch.Tensor:
    """(b, v, d) the recorded features, or the tower's where they are left out."""
    if "features_m2" in case.tensors:
        return case.tensors["features_m2"]
    return tower(case).hidden_states[case.settings["vision_select_layer"]][:, 1:]


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("vispruner")
    assert len(own("vispruner")) == 3
    assert PIXELS


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_scores_give_the_recorded_tokens(case: Choice) -> None:
    x, k = features(case), case.settings["visual_token_num"]
    attention = case.tensors["cls_attention_mean"]
    given = tokens(x, class_attention=attention[:, None], tower_features=x)
    strategy = tr.VisPruner(important=case.settings["important_ratio"])
    assert strategy.plan(given, [k] * len(x)).keep.tolist() == case.settings["kept"]


@pytest.mark.parametrize("case", PIXELS, ids=str)
def test_a_whole_model_keeps_the_recorded_tokens(case: Choice) -> None:
    k, model = case.settings["visual_token_num"], llava(case)
    strategy = tr.VisPruner(important=case.settings["important_ratio"])
    with tr.reduce(model, strategy, tr.Single(0, k / 576)) as reduction, torch.no_grad():
        model(**prompt(case))
    assert [row.tolist() for row in reduction.kept[0]] == case.settings["kept"]


@pytest.mark.parametrize("k", [1, 2, 63, 64, 575])
@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.5, 0.99])
def test_odd_numbers_are_no_error(k: int, share: float) -> None:
    """Where the original raises; the important ones stay, whatever the queue loses."""
    (case,) = (case for case in CASES if case.folder.name == "k64_r05_b2")
    x, attention = features(case)[:1], case.tensors["cls_attention_mean"][:1]
    given = tokens(x, class_attention=attention[:, None], tower_features=x)
    kept = tr.VisPruner(important=share).plan(given, [k]).keep[0].tolist()
    assert len(set(kept)) == k
    assert set(attention[0].argsort(descending=True)[: int(k * share)].tolist()) <= set(kept)


def test_twins_leave_first() -> None:
    """Of eight pairs of equal tokens, one of each pair leaves."""
    x = torch.eye(8).repeat_interleave(2, dim=0)[None]
    attention = torch.arange(16, 0, -1.0)[None, None] / 136
    given = tokens(x, class_attention=attention, tower_features=x)
    kept = tr.VisPruner(important=0.0).plan(given, [8]).keep[0]
    assert (kept // 2).tolist() == list(range(8))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_outside_0_to_1_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"{share} is not a share"):
        tr.VisPruner(important=share)
