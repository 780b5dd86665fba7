"""FasterVLM, against the recorded runs of Theia-4869/FasterVLM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenreduce as tr

from .choices import Choice, choices, llava, own, prompt, tokens

CASES = choices("fastervlm")
PARITY = {
    "k64_b2": ("kept", "kept, attention 1e-6, projected features 1e-4"),
}
"""From stored tensors, and from pixels in a whole model; the parity page has this table."""


class Watched(tr.strategies["fastervlm"]):  # type: ignore[misc]
    """Notes what it ranks by, and what it ranks."""

    def score(self, tokens: tr.Tokens) -> Tensor:
        self.hidden, self.scores = tokens.hidden, super().score(tokens)
        return self.scores


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("fastervlm") >= {"fastervlm/k64_b2"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_attention_gives_the_recorded_tokens(case: Choice) -> None:
    attention = case.tensors["cls_attention_mean"]
    k, b = case.settings["visual_token_num"], len(attention)
    given = tokens(torch.zeros(*attention.shape, 4), class_attention=attention[:, None])
    assert tr.FasterVLM().plan(given, [k] * b).keep.tolist() == case.settings["kept"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_whole_model_keeps_the_recorded_tokens(case: Choice) -> None:
    """From the pixels on: features, attention and tokens, with the recorded tower in a LLaVA."""
    attention, features = (
        case.tensors[name] for name in ("cls_attention_mean", "projected_features_all")
    )
    k, v = case.settings["visual_token_num"], attention.shape[1]
    model, strategy = llava(case), Watched()
    with tr.reduce(model, strategy, tr.Single(0, k / v)) as reduction, torch.no_grad():
        model(**prompt(case, v))
    assert [row.tolist() for row in reduction.kept[0]] == case.settings["kept"]
    assert (strategy.hidden - features).abs().max() <= 1e-4
    assert (strategy.scores - attention).abs().max() <= 1e-6


@pytest.mark.parametrize("case", CASES[:1], ids=str)
def test_another_layer_is_noticed(case: Choice) -> None:
    model = llava(case)
    model.config.vision_feature_layer = model.model.config.vision_feature_layer = -1
    with tr.reduce(model, "fastervlm", tr.Single(0, 64 / 576)) as reduction, torch.no_grad():
        model(**prompt(case))
    assert [row.tolist() for row in reduction.kept[0]] != case.settings["kept"]
