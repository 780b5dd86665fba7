"""Names of version 0.1 that are gone still work, and say once what they are called now."""

import warnings

import pytest
import torch

import tokenreduce as tr
from tokenreduce import errors, profiling
from tokenreduce.compatibility import check_compatible
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


def test_a_tower_that_spreads_is_expanded():
    assert once(lambda: tr.ToMe(tower="spread")).tower == "expanded"


def test_the_facts_of_an_adapter_under_their_earlier_names():
    def define():
        class Earlier(tr.Adapter):
            between = ("_add",)

            def lacks(self, needs, model):
                return needs

            def unfit(self, model):
                return "its layers are odd"

            def merging(self, base):
                return frozenset({"spread"})

        return Earlier()

    adapter = once(define)
    assert adapter.feature_injections == ("_add",)
    assert adapter.missing_evidence(frozenset({"keys"}), None) == {"keys"}
    assert adapter.unsupported_reason(None) == "its layers are odd"


def test_an_adapter_whose_tower_spreads(monkeypatch):
    """What an adapter of version 0.1 returns allows what is called `expanded` today."""
    reader = tr.adapters["llava"]
    monkeypatch.setattr(reader, "merging", lambda self, base: frozenset({"spread"}))
    model, tome = FAMILIES["llava"].model(), tr.ToMe(tower="expanded")
    once(lambda: check_compatible(tome, reader(), model))


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("between", "feature_injections"),
        ("lacks", "missing_evidence"),
        ("unfit", "unsupported_reason"),
    ],
)
def test_reading_an_adapter_by_an_earlier_name(earlier, now):
    adapter = tr.Adapter()
    assert once(lambda: getattr(adapter, earlier)) == getattr(adapter, now)
    with pytest.raises(AttributeError, match="lack"):
        _ = adapter.lack


def test_a_strategy_that_watches_observes():
    def define():
        class Earlier(tr.Random):
            watches = True

        return Earlier()

    assert once(define).observe_only


@pytest.mark.parametrize(
    ("earlier", "now", "given"),
    [
        ("begin", "initialize", (FAMILIES["llama-gqa"].model(),)),
        ("complaint", "untrained_warning", (False,)),
        ("accept_untrained", "silence_untrained", ()),
        ("join", "add_to_optimizer", (torch.optim.SGD([torch.zeros(1)]),)),
    ],
)
def test_a_learned_strategy_by_its_earlier_names(earlier, now, given, monkeypatch):
    scorer, calls = tr.ScorerMLP(), []
    monkeypatch.setattr(tr.ScorerMLP, now, lambda self, *args: calls.append(args))
    once(lambda: getattr(scorer, earlier)(*given))
    assert calls == [given, given]


@pytest.mark.parametrize(
    ("earlier", "now"),
    [("Meter", "ScheduleEvaluator"), ("Cell", "Measurement"), ("Prices", "CostTable")],
)
def test_the_names_of_profiling(earlier, now):
    assert once(lambda: getattr(profiling, earlier)) is getattr(profiling, now)
    with pytest.raises(AttributeError, match="Metre"):
        _ = profiling.Metre


def test_choice_is_selection():
    from tokenreduce import choice, selection

    assert once(lambda: choice.blocks) is selection.blocks
    assert once(lambda: choice.elsewhere) is selection.other_picture
    assert once(lambda: choice.of_own) is selection.within_own_budget
    with pytest.raises(AttributeError):
        _ = choice.nothing


def test_evidence_has_a_module():
    from tokenreduce import evidence, tokens

    assert once(lambda: tokens.EVIDENCE) is evidence.EVIDENCE


def test_a_strategy_is_asked_by_its_earlier_name():
    assert once(lambda: tr.Random().watches) is False
