"""What `reduce()` refuses: one sentence with the value, what is known, and the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, LAYERS


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILIES["llama"].model()


@dataclass
class Saliency(tr.Stride):
    """Needs what nobody measures."""

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})


@dataclass
class Greedy(tr.Stride):
    """Keeps one more than it may."""

    def plan(self, tokens: tr.Tokens, budget: Any) -> tr.Plan:
        return super().plan(tokens, [k + 1 for k in budget])


class OneRule(tr.Adapter):
    """A family whose positions are not one-dimensional."""

    families: ClassVar[frozenset[str]] = frozenset()
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType({})
    positions: ClassVar[frozenset[str]] = frozenset({"keep"})


class Alien(nn.Module):
    """A model of a family that no adapter reads."""

    config = SimpleNamespace(model_type="perceiver")


Call = Callable[[Any], Any]
REFUSALS: dict[str, tuple[type[Exception], Call, tuple[str, ...]]] = {
    "an unknown strategy": (
        KeyError,
        lambda m: tr.reduce(m, "pyramiddrop"),
        ("no strategy 'pyramiddrop'", "did you mean 'pyramid_drop'?", "known:", "fastv"),
    ),
    "an unknown scheduler": (
        KeyError,
        lambda m: tr.reduce(m, "fastv", "pyramids"),
        ("no scheduler 'pyramids'", "did you mean 'pyramid'?", "known:", "single"),
    ),
    "an unknown adapter": (
        KeyError,
        lambda m: tr.reduce(m, "fastv", adapter="lava"),
        ("no adapter 'lava'", "did you mean 'llava'?", "known:", "decoder"),
    ),
    "a layer beyond the model": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", tr.Single(layer=40)),
        ("40", f"decoder of {LAYERS} layers", f"use 0 to {LAYERS - 1}"),
    ),
    "more stages than layers": (
        ValueError,
        lambda m: tr.reduce(m, "pyramid_drop", tr.Pyramid(stages=9)),
        ("stages=9", f"({LAYERS})", f"use at most {LAYERS}"),
    ),
    "a share above 1": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", tr.Single(keep=1.5)),
        ("keep", "between 0 and 1", "1.5"),
    ),
    "a share below 0": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", tr.Explicit(layers=(2,), keeps=(-0.1,))),
        ("keeps", "between 0 and 1", "-0.1"),
    ),
    "a share in per cent, as text": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", tr.Single(keep="50%")),  # type: ignore[arg-type]
        ("keep", "between 0 and 1", "'50%'", "(text)"),
    ),
    "an unknown rounding rule": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", tr.Single(rounding="flor")),  # type: ignore[arg-type]
        ("no rounding rule 'flor'", "did you mean 'floor'?", "known: nearest, floor, ceil"),
    ),
    "an unsupported family": (
        ValueError,
        lambda m: tr.reduce(Alien(), "fastv"),
        ("no adapter reads the model family 'perceiver'", "supported:", "llava", "To add one"),
    ),
    "evidence that nobody measures": (
        TypeError,
        lambda m: tr.reduce(m, Saliency()),
        ("Saliency needs saliency", "Decoder adapter", "it has:", "attention"),
    ),
    "an unknown position rule": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", positions="kept"),  # type: ignore[arg-type]
        ("no positions 'kept'", "did you mean 'keep'?", "known: keep, compact"),
    ),
    "positions that the family does not define": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", adapter=OneRule(), positions="compact"),
        ("positions='compact'", "not defined", "OneRule"),
    ),
    "an unknown kind of logits": (
        ValueError,
        lambda m: tr.reduce(m, "fastv", logits="texts"),  # type: ignore[arg-type]
        ("no logits 'texts'", "did you mean 'text'?", "known: full, text"),
    ),
    "a number for a strategy": (
        TypeError,
        lambda m: tr.reduce(m, 3),  # type: ignore[arg-type]
        ("strategy is a registered name or an instance", "not 3", "pyramid_drop"),
    ),
    "a class for a strategy": (
        TypeError,
        lambda m: tr.reduce(m, tr.FastV),  # type: ignore[arg-type]
        ("strategy is a registered name or an instance", "FastV", "known names:"),
    ),
    "a share for a scheduler": (
        TypeError,
        lambda m: tr.reduce(m, "fastv", 0.5),  # type: ignore[arg-type]
        ("scheduler is a registered name or an instance", "not 0.5", "single"),
    ),
    "a strategy and a scheduler in the wrong order": (
        TypeError,
        lambda m: tr.reduce(m, tr.Single(), tr.FastV()),  # type: ignore[arg-type]
        ("strategy is a registered name or an instance", "not Single(", "fastv"),
    ),
    "a mask of numbers": (
        TypeError,
        lambda m: _marked(m, torch.ones(1, 4)),
        ("visual mask", "bool", "(samples, sequence)"),
    ),
    "an unknown FastV score": (
        ValueError,
        lambda m: tr.FastV(score="recieved"),  # type: ignore[arg-type]
        ("no FastV score 'recieved'", "did you mean 'received'?", "known: last, received"),
    ),
    "an unknown pooling mode": (
        ValueError,
        lambda m: tr.Pooling(mode="average"),  # type: ignore[arg-type]
        ("no pooling mode 'average'", "known: avg, max"),
    ),
}


def _marked(model: Any, mask: Any) -> None:
    reduction = tr.reduce(model, "none")
    try:
        with reduction.visual(mask):
            pass
    finally:
        reduction.remove()


@pytest.fixture(params=list(REFUSALS), ids=str)
def refusal(request: pytest.FixtureRequest, model: Any) -> tuple[str, str]:
    kind, call, _ = REFUSALS[request.param]
    with pytest.raises(kind) as caught:
        call(model)
    return request.param, str(caught.value)


def test_a_refusal_names_the_value_what_is_known_and_the_way_out(refusal: tuple[str, str]) -> None:
    name, message = refusal
    for part in REFUSALS[name][2]:
        assert part in message, message


def test_a_refusal_is_a_sentence_that_can_be_read(refusal: tuple[str, str]) -> None:
    _, message = refusal
    assert "\n" not in message
    assert 30 < len(message) < 800  # the supported families are listed
    assert "  " not in message
    assert not message.endswith("'\"")
    assert "object at 0x" not in message


def test_a_refused_model_is_left_as_it_was(refusal: tuple[str, str], model: Any) -> None:
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_a_second_reduction_is_refused(model: Any) -> None:
    message = r"LlamaForCausalLM is already reduced.*remove"
    with tr.reduce(model, "none"), pytest.raises(ValueError, match=message):
        tr.reduce(model, "fastv")
    tr.reduce(model, "none").remove()  # the first one is off: nothing is in the way


def test_a_plan_of_another_size_is_refused(model: Any) -> None:
    given = batch(FAMILIES["llama"], images=(1,))
    with (
        pytest.raises(ValueError, match=r"Greedy kept \d+ tokens of 1 samples at layer 2.*budget"),
        tr.reduce(model, Greedy(), tr.Single(layer=2)) as reduction,
        reduction.visual(given.visual),
    ):
        model(**given.inputs)


def test_nothing_reduced_is_a_warning(model: Any) -> None:
    given = batch(FAMILIES["llama"], images=(1,))
    reduction = tr.reduce(model, "fastv")
    with pytest.raises(RuntimeError, match="no prompt has passed"):
        _ = reduction.report
    model(**given.inputs)  # nobody marked the visual tokens
    assert not any(reduction.report.applied)
    with pytest.warns(
        tr.ReductionWarning, match=r"without having reduced anything.*visual\(mask\)"
    ):
        reduction.remove()


def test_a_static_cache_is_refused() -> None:
    model, given = FAMILIES["llava"].model(), batch(FAMILIES["llava"], images=(1,))
    with (
        pytest.raises(ValueError, match=r"cannot hold reduced tokens.*DynamicCache"),
        tr.reduce(model, "fastv"),
    ):
        model.generate(**given.inputs, max_new_tokens=2, cache_implementation="static")
