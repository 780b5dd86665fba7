"""Names of version 0.1 that are gone still work, and say once what they are called now."""

import warnings

import pytest
import torch

import tokenreduce as tr
from tokenreduce import errors
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES


@pytest.fixture(autouse=True)
def _unsaid(monkeypatch):
    monkeypatch.setattr(errors, "_said", set())


def once(call):
    """What a call returns, which warns the first time and not the second."""
    with pytest.warns(DeprecationWarning, match="version 0.2"):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def test_an_encoder_reduction_is_a_reduction():
    assert once(lambda: tr.EncoderReduction) is tr.Reduction


def test_places_are_pictures():
    model, given = FAMILIES["llava"].model(), batch(FAMILIES["llava"], (1,))
    with tr.reduce(model, "random") as reduction, torch.no_grad():
        model(**given.inputs)
        assert once(lambda: reduction.places) is reduction.pictures


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ({"group": 1, "weight": 2, "how": "sum"}, tr.Merge(1, 2, "sum")),
        ({"group": 1}, tr.Merge(1)),
        ({"mix": 3}, tr.Mix(3)),
    ],
    ids=str,
)
def test_what_a_plan_contains(earlier, now):
    plan = once(lambda: tr.Plan(torch.tensor([[0]]), **earlier))
    assert plan.content == now


def test_a_group_by_position_and_a_gate_with_its_ground():
    keep, group = torch.tensor([[0, 2]]), torch.tensor([[0, 0, 1]])
    assert torch.equal(once(lambda: tr.Plan(keep, None, group)).group, group)
    gate, ground = torch.ones(1, 2), torch.full((1, 3), 1 / 3)
    plan = once(lambda: tr.Plan(keep, gate=gate, ground=ground))
    assert plan.gate == tr.Gate(gate, ground)


def test_another_name_is_an_error():
    with pytest.raises(TypeError, match="Plan has no 'groups'"):
        tr.Plan(torch.tensor([[0]]), groups=1)
