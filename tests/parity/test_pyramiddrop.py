"""PyramidDrop, against the recorded runs of Cooperx521/PyramidDrop."""

from __future__ import annotations

import warnings

import pytest
import torch

import tokenreduce as tr
from tests.pairwise import pairwise

from .cases import IGNORED, Case, cases
from .compare import differences, excess, gap, gradient_gap, unequal
from .decoding import decode, recordings, step_differences
from .deviations import deviates, sound
from .outcome import Outcome, arrangement, run

ATTENTIONS = ("sdpa", "eager")
FORWARD = sound(*cases("pyramiddrop", "forward"))
TRAIN = sound(*cases("pyramiddrop", "train"))
GENERATE = sound(*cases("pyramiddrop", "generate"))
TESTED = {str(case) for case in FORWARD + TRAIN + GENERATE}
COMPARED = {"kept", "lengths", "reported", "scores", "positions", "hidden", "logits"}

with_labels = [case for case in cases("pyramiddrop", "forward") if deviates(case)]
without_answer = [case for case in cases("pyramiddrop", "train") if deviates(case)]


def trained(
    case: Case, attention: str, checkpointing: bool = False
) -> tuple[Outcome, dict[str, float]]:
    """A training step on the recorded batch, and how far its results are from the recorded ones."""
    model, features = case.model(attention).train(), case.features()
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name changed between releases
            model.gradient_checkpointing_enable()
    embeds = case.embeds(model, features)
    outcome = run(case, model, inputs_embeds=embeds, labels=case.labels, backward=True)
    found = differences(case, outcome, model) | {"gradients": 0.0}
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    ours |= {f"image_features.{i}": x.grad for i, x in enumerate(features)}
    for name, theirs in case.tensors.items():
        if name.startswith("grad."):
            wide = gradient_gap(ours[name.removeprefix("grad.")], theirs)
            found["gradients"] = max(found["gradients"], wide)
    return outcome, found


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_forward_pass_is_the_recorded_one(case: Case, attention: str) -> None:
    model = case.model(attention)
    with torch.no_grad():
        found = differences(case, run(case, model), model)
    assert not excess(found)
    assert found.keys() >= COMPARED


@pytest.mark.parametrize(
    ("case", "attention", "checkpointing"), pairwise(TRAIN, ATTENTIONS, [False, True]), ids=str
)
def test_training_step_is_the_recorded_one(case: Case, attention: str, checkpointing: bool) -> None:
    _, found = trained(case, attention, checkpointing)
    assert not excess(found)
    assert found.keys() >= COMPARED | {"loss", "gradients"}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", GENERATE, ids=str)
def test_prefill_and_its_cache_are_the_recorded_ones(case: Case, attention: str) -> None:
    model = case.model(attention)
    with torch.no_grad():
        found = differences(case, run(case, model), model)
    assert not excess(found)
    assert found.keys() >= {"kept", "lengths", "positions", "keys", "values"}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", GENERATE, ids=str)
def test_generation_is_the_recorded_one(case: Case, attention: str) -> None:
    model, seen = case.model(attention), set()
    for recorded in recordings(case):
        decoded = decode(case, model, recorded)
        assert not excess(step_differences(case, model, recorded, decoded))
        assert all(not unequal(case.kept, kept) for kept in decoded.kept)
        seen.add(recorded.cache)
    assert seen == {True, False}


@pytest.mark.parametrize("case", [c for c in GENERATE if not c.visual.any()], ids=str)
def test_text_alone_is_left_as_it_is_and_said_to_be(case: Case) -> None:
    model, mask = case.model(), case.visual
    embeds = case.embeds(model).detach()
    plain = model(inputs_embeds=embeds).logits
    with pytest.warns(tr.ReductionWarning, match="without having reduced"):  # noqa: SIM117
        with tr.reduce(model, *arrangement(case)[:2]) as reduction, reduction.visual(mask):
            assert torch.equal(model(inputs_embeds=embeds).logits, plain)


@pytest.mark.parametrize("case", GENERATE, ids=str)
def test_recorded_positions_and_lengths_are_the_rule_that_decoding_is_held_to(case: Case) -> None:
    for step, entry in enumerate(case["steps"]):
        lengths = [case.hidden_length(layer) + step for layer in range(8)]
        assert entry["kv_len_per_layer"] == lengths
        assert entry["pos_last_per_layer"] == [n - 1 for n in lengths]


@pytest.mark.parametrize("case", FORWARD + TRAIN, ids=str)
def test_recorded_positions_are_the_rule_that_layers_are_held_to(case: Case) -> None:
    for stage, layer in enumerate(case["layer_list"]):
        for sample, ids in enumerate(case.tensors[f"stage{stage}.position_ids_after"]):
            n = len(case.survivors(layer, sample))
            assert ids[:n].tolist() == list(range(n))


# what is deliberately not copied


@pytest.mark.parametrize("case", with_labels, ids=str)
def test_labels_in_evaluation_never_let_the_answer_choose(case: Case) -> None:
    model = case.model()
    with torch.no_grad():
        blind = run(case, model)
        found = differences(case, blind, model)
        assert not excess(found)  # without labels: the recorded run, whose query is the last token
        labels = case.labels[:, 1:]
        logits = blind.output.logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        assert gap(loss, case.tensors["loss"]) <= 1e-5
        evaluated = run(case, model, labels=case.labels)
        training = run(case, model.train(), labels=case.labels)
        assert evaluated.kept == training.kept != case.kept
        changed = case.embeds(model).detach()
        changed[case.labels != IGNORED] += 1.0  # another answer
        other = run(case, model.eval(), inputs_embeds=changed, labels=case.labels)
    assert other.kept == evaluated.kept


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", without_answer, ids=str)
def test_a_sample_without_an_answer_is_reduced_too(case: Case, attention: str) -> None:
    outcome, found = trained(case, attention)
    assert found["loss"] <= 1e-5
    assert found["gradients"] <= 1e-4
    for layer, rows in case.kept.items():
        for sample, theirs in enumerate(rows):
            ours = outcome.kept[layer][sample]
            assert ours == theirs or not theirs
            assert len(ours) == max(map(len, rows))
    lengths = [x.shape[1] for x in outcome.hidden]
    assert lengths == [case.hidden_length(layer) for layer in range(len(lengths))]
