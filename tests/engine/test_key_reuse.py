"""Keys that a score has projected are handed to the layer: same numbers, nothing left behind."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.engine import decide
from tokenreduce.engine.capture import KeyReuse
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

SCHEDULE = tr.Explicit(layers=(0, 3), keeps=(0.5, 0.2))
GQA = FAMILIES["llama-gqa"]


@pytest.fixture
def handed(monkeypatch):
    """The keys of every handover."""
    found = []

    class Watched(KeyReuse):
        def __init__(self, projection, keys):
            found.append(keys)
            super().__init__(projection, keys)

    monkeypatch.setattr(decide, "KeyReuse", Watched)
    return found


def logits(model, prompt, strategy="pyramid_drop", **options):
    with tr.reduce(model, strategy, SCHEDULE) as reduction:
        return prompt.run(model, reduction, **options).logits


def projections(model):
    return [layer.self_attn.k_proj for layer in model.get_decoder().layers]


@pytest.mark.parametrize("family", [GQA, FAMILIES["qwen3"], FAMILIES["llava_next"]], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_same_numbers_as_the_layers_own(family, side, handed):
    model, prompt = family.model(), batch(family, side=side)
    own = logits(model, prompt)
    assert not handed  # gradients are on: the layer projects for itself
    with torch.no_grad():
        ours = logits(model, prompt)
    assert len(handed) == len(SCHEDULE.layers)
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in projections(model))


@pytest.mark.parametrize("strategy", ["random", "fastv", "pooling"])
def test_without_a_score_of_the_layer_there_is_nothing_to_hand_over(strategy, handed):
    model, prompt = GQA.model(), batch(GQA)
    with torch.no_grad():
        schedule = tr.Single(3, 0.5)
        with tr.reduce(model, strategy, schedule) as reduction:
            prompt.run(model, reduction)
    assert not handed


def test_whoever_watches_the_projection_sees_every_row(handed):
    model, prompt, seen = GQA.model(), batch(GQA), []
    for projection in projections(model):
        projection.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.no_grad():
        logits(model, prompt)
    assert not handed
    assert 0 not in seen


def test_nothing_stays_after_an_error(handed):
    model, prompt = GQA.model(), batch(GQA)
    layer = model.get_decoder().layers[3]

    def fail(*_):
        raise RuntimeError("before the projection")

    handle = layer.self_attn.register_forward_pre_hook(fail)
    with torch.no_grad(), tr.reduce(model, "pyramid_drop", SCHEDULE) as reduction:
        with pytest.raises(RuntimeError, match="before the projection"):
            prompt.run(model, reduction)
        handle.remove()
        assert not any(p._forward_hooks or p._forward_pre_hooks for p in projections(model))
        after = prompt.run(model, reduction).logits
    with torch.no_grad():
        torch.testing.assert_close(after, logits(model, prompt))
