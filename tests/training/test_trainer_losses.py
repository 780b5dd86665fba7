"""`transformers.Trainer` around a reduced model computes what it computes around the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

import tokenreduce as tr
from tests.training.loops import make, run
from tests.training.reference import (
    SCHEDULE,
    assert_close,
    assert_same,
    collator,
    recorded,
    replayed,
)
from tests.training.reference import samples as samples_of
from tokenreduce.integrations.trainer import follow
from tokenreduce.testing.batches import IGNORED, batch
from tokenreduce.testing.models import FAMILIES


def reduced(model, name="pyramid_drop", **options):
    return tr.reduce(model, name, SCHEDULE, positions="keep", **options)


def both(folder, name="llava", strategy="pyramid_drop", logits="full", **options):
    """The same script under a reduction, and on the masked reference of what it kept."""
    model = FAMILIES[name].model()
    loop, ours = make(model, folder, name, **options)
    with reduced(model, strategy, logits=logits) as reduction, recorded(model, reduction) as kept:
        follow(loop, reduction)
        run(loop, ours)
    model = FAMILIES[name].model()
    loop, theirs = make(model, folder, name, **options)
    with replayed(model, kept):
        run(loop, theirs)
    return ours, theirs


def answers(name="llava", **options):
    """How many tokens are to be predicted in the data set."""
    labels = collator(name)(samples_of(name, **options))["labels"]
    return int((labels[:, 1:] != IGNORED).sum())


@pytest.mark.parametrize(
    ("name", "parts", "logits"),
    [
        ("llava", 1, "full"),
        pytest.param("llava", 2, "text", marks=pytest.mark.slow),
        pytest.param("qwen2_vl", 1, "full", marks=pytest.mark.slow),
        ("qwen2_vl", 2, "text"),
    ],
)
def test_a_step_is_that_of_the_masked_reference(tmp_path, name, logits, parts):
    ours, theirs = both(tmp_path, name, logits=logits, parts=parts)
    assert_close(ours.losses, theirs.losses)
    assert_same(ours.gradients, theirs.gradients)
    assert_same(ours.weights, theirs.weights, share=1e-5)
    assert ours.items == theirs.items == [answers(name)] * parts


@pytest.mark.parametrize(
    ("strategy", "logits"),
    [("pyramid_drop", "text"), pytest.param("random", "full", marks=pytest.mark.slow)],
)
def test_two_micro_batches_are_one_batch(tmp_path, strategy, logits):
    """Though their answers differ in length: the Trainer counts labels, and nobody drops any."""
    found = []
    for parts in (1, 2):
        model = FAMILIES["llava"].model()
        loop, step = make(model, tmp_path, parts=parts)
        counts = [
            int((part["labels"][:, 1:] != IGNORED).sum()) for part in loop.get_train_dataloader()
        ]
        assert len(counts) == parts
        assert len(set(counts)) == parts
        with reduced(model, strategy, logits=logits) as reduction:
            follow(loop, reduction)
            found.append(run(loop, step))
    whole, halves = found
    assert_close(halves.losses, whole.losses)
    assert_same(halves.gradients, whole.gradients)
    assert_same(halves.weights, whole.weights, share=1e-5)


def shifted(outputs, labels, num_items_in_batch=None):
    """A loss that somebody computes outside the model."""
    logits, ahead = outputs.logits[:, :-1], labels[:, 1:]
    loss = cross_entropy(logits.flatten(0, 1), ahead.flatten(), reduction="sum")
    return loss / num_items_in_batch


OUTSIDE = {
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "compute_loss_func": {"trainer": {"compute_loss_func": shifted}},
}


ONE_OUTSIDE = ["compute_loss_func", pytest.param("label_smoothing_factor", marks=pytest.mark.slow)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ONE_OUTSIDE)
def test_a_loss_outside_the_model(tmp_path, what):
    ours, theirs = both(tmp_path, parts=2, **OUTSIDE[what])
    assert_close(ours.losses, theirs.losses)
    assert_same(ours.gradients, theirs.gradients)
    inside, _ = both(tmp_path, parts=2)
    if what == "compute_loss_func":  # and it is the model's own loss
        assert_close(ours.losses, inside.losses)
        assert_same(ours.gradients, inside.gradients)
    else:
        assert abs(ours.losses[0] - inside.losses[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("what", ONE_OUTSIDE)
def test_labels_that_the_trainer_keeps_are_told_to_the_strategy(tmp_path, what):
    """What is kept is what the same step keeps when the model sees the labels itself."""
    found = []
    for options in ({}, OUTSIDE[what]):
        model = FAMILIES["llava"].model()
        loop, _ = make(model, tmp_path, **options)
        with reduced(model) as reduction, recorded(model, reduction) as kept:
            follow(loop, reduction)
            loop.train()
        found.append(kept[0])
    for layer, rows in found[0].items():
        assert all(map(torch.equal, rows, found[1][layer])), layer


def test_labels_of_a_loop_of_ones_own():
    model, given = FAMILIES["llava"].model().train(), batch(FAMILIES["llava"], (1, 2))
    others = batch(FAMILIES["llava"], (1, 2), seed=5)
    with reduced(model) as reduction:
        model(**given.inputs, labels=given.labels)
        inside = reduction.kept
        with reduction.labels(given.labels):
            assert model(**given.inputs).loss is None
            assert_kept(reduction.kept, inside)
            with pytest.raises(RuntimeError), reduction.labels(torch.full_like(given.labels, -100)):
                raise RuntimeError
            model(**given.inputs)
            assert_kept(reduction.kept, inside)
            model(**others.inputs, labels=others.labels)  # a model's own labels come first
            own = reduction.kept
        model(**others.inputs, labels=others.labels)
        assert_kept(reduction.kept, own)
        model(**given.inputs)
        with pytest.raises(AssertionError):
            assert_kept(reduction.kept, inside)
        for wrong in (given.labels[0], given.labels.float(), given.labels.tolist()):
            with pytest.raises(TypeError, match="labels must be a tensor"), reduction.labels(wrong):
                pass


def assert_kept(found, wanted):
    assert found.keys() == wanted.keys()
    for layer, rows in wanted.items():
        assert all(map(torch.equal, rows, found[layer])), layer


def accuracy(predictions):
    outputs, labels = predictions
    first = outputs[0] if isinstance(outputs, tuple) else outputs  # the picture's features follow
    logits, labels = map(torch.as_tensor, (first, labels))
    ahead = labels[:, 1:]
    right = (logits[:, :-1].argmax(-1) == ahead)[ahead != IGNORED]
    return {"accuracy": right.double().mean().item(), "logit": float(logits[labels > 0].sum())}


def test_metrics_are_those_of_the_reference(tmp_path):
    model, found = FAMILIES["llava"].model(), []
    loop, _ = make(model, tmp_path, trainer={"compute_metrics": accuracy})
    beside = [*tr.with_cache(model, None), "image_outputs"]  # no predictions, but 5.24 gathers both
    with reduced(model) as reduction, recorded(model, reduction) as kept:
        follow(loop, reduction)
        found.append(loop.evaluate(ignore_keys=beside))
    assert len(kept) == 2
    with replayed(model, kept):
        found.append(loop.evaluate(ignore_keys=beside))
    assert found[0]["eval_accuracy"] == found[1]["eval_accuracy"]
    assert_close(found[0]["eval_loss"], found[1]["eval_loss"])
    assert found[0]["eval_logit"] == pytest.approx(found[1]["eval_logit"], rel=1e-4)


REFUSED = {
    **OUTSIDE,
    "compute_metrics": {"trainer": {"compute_metrics": accuracy}},
    "preprocess_logits_for_metrics": {"trainer": {"preprocess_logits_for_metrics": max}},
}


@pytest.mark.parametrize("what", REFUSED)
def test_text_logits_are_refused_where_labels_are_outside(tmp_path, what):
    model = FAMILIES["llava"].model()
    loop, _ = make(model, tmp_path, **REFUSED[what])
    with tr.reduce(model, "none", logits="text") as reduction:
        with pytest.raises(ValueError, match=rf'{what}.* reduce with logits="full"') as refusal:
            follow(loop, reduction)
        assert "\n" not in str(refusal.value)
    plain, _ = make(model, tmp_path, **REFUSED[what] | {"prediction_loss_only": True})
    with tr.reduce(model, "none", logits="text") as reduction:
        if what in OUTSIDE:
            with pytest.raises(ValueError, match=what):
                follow(plain, reduction)
        else:  # nobody asks for the logits
            follow(plain, reduction)


@pytest.mark.parametrize("what", OUTSIDE)
def test_text_logits_are_refused_without_follow_too(tmp_path, what):
    """Before a loss is computed: the positions of labels and logits would not be the same."""
    model = FAMILIES["llava"].model()
    loop, _ = make(model, tmp_path, **OUTSIDE[what])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with (
        pytest.raises(ValueError, match=r'trained without labels.*needs logits="full"') as refusal,
        reduced(model, logits="text"),
    ):
        loop.train()
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_text_logits_as_long_as_the_labels_are_full():
    """Beside a long sample of text alone nothing can be left out, and nothing may move."""
    family = FAMILIES["llava"]
    short, long = batch(family, (1,)).samples[0], batch(family, (0,)).samples[0]
    while len(long.ids) <= len(short.ids):
        long = type(long)(long.ids + long.ids[1:], long.labels + long.labels[1:], [])
    from tokenreduce.testing.batches import assemble

    given, model, found = assemble(family, (short, long), "right"), family.model(), []
    for logits in ("full", "text"):
        with torch.no_grad(), reduced(model, logits=logits):
            plain = model(**given.inputs)
            labelled = model(**given.inputs, labels=given.labels)
        found.append((plain.logits, labelled.logits, labelled.loss))
    for full, text in zip(*found, strict=True):
        torch.testing.assert_close(text, full)


@pytest.mark.parametrize("logits", ["full", "text"])
def test_labels_that_are_shifted_already(logits):
    """As collators give them that split a sequence: the same tokens ask, the same rows come."""
    model, given = FAMILIES["llava"].model(), batch(FAMILIES["llava"], (1, 2))
    ahead = torch.nn.functional.pad(given.labels[:, 1:], (0, 1), value=IGNORED)
    with torch.no_grad(), reduced(model, logits=logits) as reduction:
        plain = model(**given.inputs, labels=given.labels)
        kept = reduction.kept
        again = model(**given.inputs, labels=given.labels, shift_labels=ahead)
        assert torch.equal(again.loss, plain.loss)
        # the model's own loss wants labels; one around it may want the shifted ones alone
        alone = model(**given.inputs, shift_labels=ahead)
        assert_kept(reduction.kept, kept)
        assert torch.equal(alone.logits, plain.logits)


class Popping(Trainer):
    """A user's trainer with a loss of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = shifted(outputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def test_a_trainer_of_ones_own_is_told_as_well(tmp_path):
    model = FAMILIES["llava"].model()
    given = collator("llava")(samples_of("llava"))
    loop = Popping(model=model, args=make(model, tmp_path)[0].args)
    with reduced(model) as reduction:
        model(**given)
        wanted = reduction.kept
        follow(loop, reduction)
        loop.compute_loss(model, dict(given), num_items_in_batch=1)
        assert_kept(reduction.kept, wanted)
