"""The comparison can fail: a small change of the method or of the model is always noticed.

Each entry is one thing that is easy to get wrong, on a recorded case that must then differ, in at
least the kinds of difference that are named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tokenreduce as tr

from .cases import GOLDEN, Case
from .compare import differences, excess
from .outcome import run

LAYERS, KEEPS = (2, 4, 6), (0.5, 0.25, 0.125)
PYRAMID, TRAIN, FASTV = (
    "pyramiddrop/infer_n37",
    "pyramiddrop/train_two_turns",
    "fastv/hf_n37_k2_r50",
)


class OverImages(tr.Scorer):
    """Normalises attention over the image tokens instead of the whole row."""

    needs = frozenset({"attention"})

    def score(self, tokens: tr.Tokens) -> torch.Tensor:
        attention = tokens["attention"]
        return (attention / attention.sum(dim=-1, keepdim=True)).mean(dim=1)


class Loudest(tr.Scorer):
    """Takes the largest head instead of their mean."""

    needs = frozenset({"attention"})

    def score(self, tokens: tr.Tokens) -> torch.Tensor:
        return tokens["attention"].amax(dim=1)


class Before(tr.Scorer):
    """Ranks with the attention of the layer before."""

    needs = frozenset({"attention_before"})

    def score(self, tokens: tr.Tokens) -> torch.Tensor:
        return tokens["attention_before"].mean(dim=1)


TAMPERED: dict[str, tuple[str, Callable[[], dict[str, Any]], set[str]]] = {
    "another layer": (
        PYRAMID,
        lambda: {"scheduler": tr.Explicit((1, 4, 6), KEEPS, "floor")},
        {"kept", "lengths", "hidden", "logits"},
    ),
    "rounded instead of cut": (
        PYRAMID,
        lambda: {"scheduler": tr.Explicit(LAYERS, KEEPS, "nearest")},
        {"kept", "lengths"},
    ),
    "shares of what is left": (
        PYRAMID,
        lambda: {"scheduler": tr.Explicit(LAYERS, (0.5, 0.125, 0.0625), "floor")},
        {"kept", "lengths"},
    ),
    "positions kept": (PYRAMID, lambda: {"positions": "keep"}, {"positions", "hidden", "logits"}),
    "softmax over the image": (PYRAMID, lambda: {"strategy": OverImages()}, {"kept", "scores"}),
    "largest head": (PYRAMID, lambda: {"strategy": Loudest()}, {"kept", "scores"}),
    "layer before": (PYRAMID, lambda: {"strategy": Before()}, {"kept", "scores"}),
    "last token asks in training": (TRAIN, lambda: {"labels": None}, {"kept", "scores"}),
    "positions renumbered": (
        FASTV,
        lambda: {"positions": "compact"},
        {"positions", "hidden", "logits", "keys"},
    ),
    "attention received": (
        FASTV,
        lambda: {"strategy": tr.FastV(score="received")},
        {"kept", "scores"},
    ),
    "one layer later": (
        FASTV,
        lambda: {"scheduler": tr.Single(3, 0.5)},
        {"kept", "lengths", "scores"},
    ),
    "one token more": (FASTV, lambda: {"scheduler": tr.Single(2, 19 / 37)}, {"kept", "lengths"}),
    "some tokens stay": (
        "vtw/keep_n40_k4",
        lambda: {"strategy": tr.FastV(), "scheduler": tr.Single(4, 0.1)},
        {"kept", "lengths", "hidden"},
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_noticed(name: str) -> None:
    where, change, kinds = TAMPERED[name]
    case = Case(GOLDEN / where)
    model = case.model().train(case.kind == "train")
    options = ({"labels": case.labels} if case.kind == "train" else {}) | change()
    found = differences(case, run(case, model, **options), model)
    assert excess(found).keys() >= kinds, found


@pytest.mark.parametrize("where", [PYRAMID, FASTV])
def test_another_model_is_noticed(where: str) -> None:
    case = Case(GOLDEN / where)
    model = case.model()
    with torch.no_grad():
        model.model.layers[3].self_attn.v_proj.weight.mul_(1.01)
        found = differences(case, run(case, model), model)
    assert excess(found).keys() >= {"hidden", "logits"}


def test_another_image_is_noticed() -> None:
    case = Case(GOLDEN / PYRAMID)
    model = case.model()
    with torch.no_grad():
        embeds = case.embeds(model).detach()
        embeds[case.visual] = embeds[case.visual].flip(0)
        found = differences(case, run(case, model, inputs_embeds=embeds), model)
    assert excess(found).keys() >= {"kept", "scores", "hidden", "logits"}
