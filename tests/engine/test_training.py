"""Training through a reduction: losses and gradients of the caller's own labels.

The reference hides the dropped tokens from an untouched model, and lets every label be predicted
by the last token that is left before it: what a shortened sequence with shortened labels computes.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.testing.batches import IGNORED, batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import filled, left, masked

LLAVA, NEXT = FAMILIES["llava"], FAMILIES["llava_next"]


def reference_loss(model, prompt, labels, kept, items=None):
    with masked(model, prompt.visual, kept):
        logits = model(**prompt.inputs).logits
    logits, seen = filled(logits, left(prompt.visual, prompt.real, kept))
    logits = logits * seen[..., None]
    how = "mean" if items is None else "sum"
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=how)
    return loss if items is None else loss / items


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(ours, theirs, share=2e-4):
    """Equal up to rounding; biases whose true gradient is zero are measured against the largest."""
    assert ours.keys() == theirs.keys()
    largest = max(g.abs().max() for g in theirs.values())
    for name, theirs_ in theirs.items():
        scale = max(theirs_.abs().max(), 1e-3 * largest)
        error = (ours[name] - theirs_).abs().max() / scale
        assert error < share, f"{name}: {error:.2e}"


def label_cases():
    """(name, labels from a prompt), every kind of supervision that has broken someone's code."""

    def none(p):  # a sample without answers
        labels = p.labels.clone()
        labels[-1] = IGNORED
        return labels

    def after_image(p):  # the word right behind every image, predicted by its last token
        labels = torch.full_like(p.labels, IGNORED)
        follows = torch.zeros_like(p.visual)
        follows[:, 1:] = p.visual[:, :-1] & ~p.visual[:, 1:] & p.real[:, 1:]
        labels[follows] = p.inputs["input_ids"][follows]
        return labels

    def all_text(p):  # supervision from index 0 on
        return p.inputs["input_ids"].masked_fill(p.visual | ~p.real, IGNORED)

    def everything(p):  # even the placeholders
        return p.inputs["input_ids"].masked_fill(~p.real, IGNORED)

    def last(p):  # nothing but the last token
        labels = torch.full_like(p.labels, IGNORED)
        labels[:, -1] = p.inputs["input_ids"][:, -1]
        return labels.masked_fill(~p.real, IGNORED)

    return {
        "answers": lambda p: p.labels, "none": none, "after image": after_image,
        "all text": all_text, "everything": everything, "last": last,
    }  # fmt: skip


CASES = label_cases()


@pytest.mark.parametrize(
    ("case", "side", "name"), pairwise(CASES, ["left", "right"], ["random", "pyramid_drop"])
)
def test_loss_equals_the_reference(llava, case, side, name, schedule):
    prompt = batch(LLAVA, (1, 0, 2), side=side)
    labels = CASES[case](prompt)
    before = labels.clone()
    with tr.reduce(llava, name, schedule, positions="keep") as reduction, torch.no_grad():
        out = llava(**prompt.inputs, labels=labels)
    assert torch.equal(labels, before)
    assert out.logits.shape[:2] == labels.shape
    with torch.no_grad():
        wanted = reference_loss(llava, prompt, labels, reduction.kept)
    torch.testing.assert_close(out.loss, wanted, atol=2e-6, rtol=1e-5)
    assert reduction.report.applied == [True, False, True]


def test_several_images_after_one_another(llava, schedule):
    """Two images without a word between them, and answers in between the turns."""
    prompt = batch(LLAVA, (2,))
    ids = prompt.inputs["input_ids"][0]
    keep = torch.ones_like(ids, dtype=torch.bool)
    first_end = int((prompt.visual[0].long().cumsum(0) == 25).nonzero()[0, 0])
    keep[first_end + 1 : first_end + 3] = False
    inputs = prompt.inputs | {n: prompt.inputs[n][:, keep] for n in ("input_ids", "attention_mask")}
    from dataclasses import replace

    joined = replace(
        prompt, inputs=inputs, visual=prompt.visual[:, keep], real=prompt.real[:, keep],
        labels=prompt.labels[:, keep],
    )  # fmt: skip
    with tr.reduce(llava, "pyramid_drop", schedule, positions="keep") as reduction:
        ours = gradients(llava, llava(**joined.inputs, labels=joined.labels).loss)
        assert [len(p) for p in reduction.pictures[0]] == [25, 25]
    wanted = gradients(llava, reference_loss(llava, joined, joined.labels, reduction.kept))
    same_gradients(ours, wanted)


@pytest.mark.parametrize(
    ("family", "side", "layers"),
    pairwise([LLAVA, NEXT], ["left", "right"], [(0, 3), (2, 4)]),
    ids=str,
)
def test_gradients_equal_the_reference(family, side, layers):
    model, prompt = family.model(), batch(family, (1, 0, 2), side=side)
    model.train()
    with tr.reduce(model, "pyramid_drop", tr.Explicit(layers, (0.5, 0.2)), positions="keep") as r:
        loss = model(**prompt.inputs, labels=prompt.labels).loss
        ours = gradients(model, loss)
    wanted = reference_loss(model, prompt, prompt.labels, r.kept)
    torch.testing.assert_close(loss, wanted, atol=2e-6, rtol=1e-5)
    theirs = gradients(model, wanted)
    same_gradients(ours, theirs)
    for part in ("patch_embedding", "multi_modal_projector", "embed_tokens", "layers.5.mlp"):
        assert any(g.abs().max() > 0 for name, g in ours.items() if part in name), part


def test_gradients_flow_through_merged_tokens(llava):
    """Pooled tokens hand their gradient to every token that was merged."""
    prompt = batch(LLAVA, (1,))
    pixels = prompt.inputs["pixel_values"].clone().requires_grad_()
    with tr.reduce(llava, "pooling", tr.Single(2, 0.25)):
        llava(**prompt.inputs | {"pixel_values": pixels}, labels=prompt.labels).loss.backward()
    patches = pixels.grad.abs().unfold(2, 4, 4).unfold(3, 4, 4).amax(dim=(0, 1, 4, 5))
    assert (patches > 0).all()


@pytest.mark.parametrize(
    ("reentrant", "name", "logits"),
    pairwise([True, False], ["random", "pyramid_drop", "fastv"], ["full", "text"]),
)
def test_activation_checkpointing_changes_no_number(llava, reentrant, name, logits, schedule):
    prompt = batch(LLAVA, (1, 0, 2))
    other = batch(LLAVA, (2,), seed=3)
    llava.train()
    found = []
    with tr.reduce(llava, name, schedule, logits=logits):
        for on in (False, True):
            if on:
                enable = getattr(llava, "activation_checkpointing_enable", None)
                (enable or llava.gradient_checkpointing_enable)({"use_reentrant": reentrant})
                for part in llava.model.vision_tower.modules():
                    # its inputs are pixels, on which reentrant checkpointing gives no gradients
                    if hasattr(part, "gradient_checkpointing"):
                        part.gradient_checkpointing = False
                llava.enable_input_require_grads()
            loss = llava(**prompt.inputs, labels=prompt.labels).loss
            with torch.no_grad():  # another prompt before the backward pass
                llava.eval()(**other.inputs)
            llava.train()
            found.append((loss.detach(), gradients(llava, loss)))
        # the model is this test's own: left checkpointed
        llava.disable_input_require_grads()
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for gradient, name_ in zip(found[0][1].values(), found[1][1], strict=True):
        assert torch.equal(gradient, found[1][1][name_]), name_


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_logits_have_the_same_loss_and_gradients(llava, case, side, schedule):
    prompt = batch(LLAVA, (1, 0, 2), side=side)
    labels = CASES[case](prompt)
    before, found = labels.clone(), {}
    for kind in ("full", "text"):
        with tr.reduce(llava, "pyramid_drop", schedule, logits=kind, positions="keep"):
            out = llava(**prompt.inputs, labels=labels)
            found[kind] = (out.loss.detach(), gradients(llava, out.loss), out.logits.detach())
    assert torch.equal(labels, before)
    torch.testing.assert_close(found["text"][0], found["full"][0], atol=1e-6, rtol=1e-6)
    same_gradients(found["text"][1], found["full"][1], share=1e-5)
    short, whole = found["text"][2], found["full"][2]
    assert short.shape[1] < whole.shape[1] or case == "everything"


def test_text_logits_are_those_of_text(llava, schedule):
    prompt = batch(LLAVA, (1, 0, 2), side="right")
    found = {}
    for kind in ("full", "text"):
        with torch.no_grad(), tr.reduce(llava, "random", schedule, logits=kind):
            found[kind] = llava(**prompt.inputs).logits
    needed = ~prompt.visual
    needed[:, :-1] |= prompt.visual[:, :-1] & ~prompt.visual[:, 1:]
    needed &= prompt.real
    assert found["text"].shape[1] == needed.sum(1).max()
    for row, short, whole in zip(needed, found["text"], found["full"], strict=True):
        torch.testing.assert_close(short[-int(row.sum()) :], whole[row], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["full", "text"])
def test_the_number_of_items_is_respected(llava, schedule, kind):
    prompt = batch(LLAVA, (1, 2))
    items = torch.tensor(37)
    with torch.no_grad():
        with tr.reduce(llava, "random", schedule, logits=kind) as reduction:
            out = llava(**prompt.inputs, labels=prompt.labels, num_items_in_batch=items)
        wanted = reference_loss(llava, prompt, prompt.labels, reduction.kept, items)
    torch.testing.assert_close(out.loss, wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_generate_with_text_logits(llava, schedule, options):
    prompt = batch(LLAVA, (1, 0, 2))
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [7]} | options
    said = []
    for kind in ("full", "text"):
        with tr.reduce(llava, "pyramid_drop", schedule, logits=kind):
            said.append(llava.generate(**prompt.inputs, **options))
    assert torch.equal(*said)


@pytest.mark.parametrize("kind", ["full", "text"])
def test_labels_in_evaluation(llava, schedule, kind):
    """eval() and train() agree on a model without dropout; a next forward has no labels left."""
    prompt = batch(LLAVA, (1, 2))
    with torch.no_grad(), tr.reduce(llava, "pyramid_drop", schedule, logits=kind) as reduction:
        first = llava.eval()(**prompt.inputs, labels=prompt.labels).loss
        asked = reduction.kept
        second = llava.train()(**prompt.inputs, labels=prompt.labels).loss
        assert torch.equal(first, second)
        llava.eval()(**prompt.inputs)
        answering = reduction.kept
        alone = tr.reduce(fresh := LLAVA.model(), "pyramid_drop", schedule)
        fresh(**prompt.inputs)
        for a, b in zip(answering[2], alone.kept[2], strict=True):
            assert torch.equal(a, b)
        alone.remove()
    assert len(asked[2]) == 2


def test_the_tokens_before_the_answers_ask(llava, schedule):
    """What follows an answer's first token cannot change what is kept in training."""
    prompt = batch(LLAVA, (1, 2))
    first = (prompt.labels != IGNORED) & (prompt.inputs["input_ids"] > 9)
    ids = prompt.inputs["input_ids"].clone()
    tail = first.clone()
    tail[:, :-3] = False
    ids[tail] = torch.where(ids[tail] == 50, 51, 50)
    with torch.no_grad(), tr.reduce(llava, "pyramid_drop", schedule) as reduction:
        llava(**prompt.inputs, labels=prompt.labels)
        a = reduction.kept
        llava(**prompt.inputs | {"input_ids": ids}, labels=prompt.labels)
        b = reduction.kept
        llava(**prompt.inputs | {"input_ids": ids})
        c = reduction.kept
    assert all(torch.equal(x, y) for i in (2, 4) for x, y in zip(a[i], b[i], strict=True))
    assert any(not torch.equal(x, y) for i in (2, 4) for x, y in zip(a[i], c[i], strict=True))


def test_training_steps_lower_the_loss(llava, schedule):
    prompt = batch(LLAVA, (1, 2))
    optimizer = torch.optim.Adam(llava.parameters(), lr=1e-3)
    losses = []
    with tr.reduce(llava.train(), "pyramid_drop", schedule, logits="text") as reduction:
        for step in range(6):
            reduction.progress = step / 5
            loss = llava(**prompt.inputs, labels=prompt.labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5
