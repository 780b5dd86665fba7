"""A forward that is replaced by one that computes the loss from hidden states and labels.

That is what Liger's `lce_forward` and TRL's fused head do: call the backbone, take its hidden
states, and never make the logits. Hidden states must then come back at the labels' length.
"""

from __future__ import annotations

import types

import pytest
import torch
from torch.nn.functional import linear, log_softmax
from transformers.modeling_outputs import CausalLMOutput

import tokenreduce as tr
from tests.training.reference import (
    SCHEDULE,
    assert_close,
    assert_same,
    gradients,
    recorded,
    replayed,
)
from tokenreduce.testing.batches import IGNORED, batch
from tokenreduce.testing.models import FAMILIES

NAMES = ("llava", "qwen2_vl", "qwen3_vl", "gemma3", "smolvlm")


def fuse(model, knows_shifted=True):
    """Replaces the forward of this one model, as the kernels' libraries do."""

    def forward(self, *args, labels=None, shift_labels=None, **kwargs):
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        if shift_labels is None or not knows_shifted:
            hidden, ahead = hidden[:, :-1], labels[:, 1:]
        else:
            ahead = shift_labels
        there = ahead != IGNORED
        shares = log_softmax(linear(hidden[there], self.lm_head.weight).float(), dim=-1)
        loss = -shares.gather(1, ahead[there][:, None]).mean()
        return CausalLMOutput(loss=loss)

    model.forward = types.MethodType(forward, model)
    return model


def trained(model, given):
    loss = model(**given.inputs, labels=given.labels).loss
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(("when", "logits"), [("before", "text"), ("after", "full")])
@pytest.mark.parametrize("name", NAMES)
def test_labels_align_with_hidden_states(name, when, logits):
    given = batch(FAMILIES[name], (1, 0, 2), side="right")
    model = FAMILIES[name].model().train()
    if when == "before":
        fuse(model)
    with tr.reduce(model, "pyramid_drop", SCHEDULE, positions="keep", logits=logits) as reduction:
        if when == "after":
            fuse(model)
        with recorded(model, reduction) as kept:
            loss = trained(model, given)
    other, plain = fuse(FAMILIES[name].model().train()), FAMILIES[name].model().train()
    with replayed(other, kept):
        wanted = trained(other, given)
    assert_close(loss, wanted)
    assert_same(gradients(model), gradients(other), share=1e-3)
    with tr.reduce(plain, "pyramid_drop", SCHEDULE, positions="keep"):
        assert_close(loss, trained(plain, given))  # the model's own loss


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_have_the_length_of_the_labels(name):
    given = batch(FAMILIES[name], (1, 0, 2), side="right")
    model = FAMILIES[name].model()
    with torch.no_grad(), tr.reduce(model, "pyramid_drop", SCHEDULE) as reduction:
        hidden = model.base_model(**given.inputs).last_hidden_state
        assert hidden.shape[:2] == given.labels.shape
        assert reduction.report.applied == [True, False, True]


@pytest.mark.parametrize("images", [(1,), (1, 0, 2)])
def test_a_forward_that_ignores_shifted_labels_is_an_error(images):
    """With text logits its hidden states and labels differ in length: never a loss of others."""
    given = batch(FAMILIES["llava"], images, side="right")
    model = fuse(FAMILIES["llava"].model().train(), knows_shifted=False)
    with (
        pytest.raises((IndexError, RuntimeError, ValueError), match=r"shape|size"),
        tr.reduce(model, "pyramid_drop", SCHEDULE, logits="text"),
    ):
        model(**given.inputs, labels=given.labels)
