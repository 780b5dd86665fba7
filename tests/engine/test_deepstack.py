"""DeepStack (Qwen3-VL): features that join between layers follow the tokens that are left."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.oracle import decoder_of

LEVELS = 3


def record(model):
    """What each level adds between two layers, and the features that the decoder was given."""
    seen: dict[str, list[torch.Tensor]] = {"before": [], "after": [], "given": []}
    decoder = decoder_of(model)
    handles = [
        decoder.register_forward_pre_hook(
            lambda _, __, given: seen["given"].extend(given["deepstack_visual_embeds"]),
            with_kwargs=True,
        )
    ]
    for i in range(LEVELS):
        handles += [
            decoder.layers[i].register_forward_hook(lambda _, __, x: seen["before"].append(x)),
            decoder.layers[i + 1].register_forward_pre_hook(
                lambda _, given: seen["after"].append(given[0])
            ),
        ]
    return seen, handles


@pytest.mark.parametrize("strategy", [tr.Pooling(), tr.Pooling(mode="max"), tr.Random()], ids=str)
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl-mixed"])
def test_each_survivor_gets_the_features_of_what_it_contains(name, strategy):
    model, given = FAMILIES[name].model(), batch(FAMILIES[name], (2,))
    with tr.reduce(model, strategy, tr.Single(0, 0.4)) as reduction, torch.no_grad():
        seen, handles = record(model)
        given.run(model, use_cache=False)
        for handle in handles:
            handle.remove()
    kept, plan = reduction.kept[0][0], reduction.plans[0]
    slots = given.visual[0].nonzero()[:, 0]
    there = ~given.visual[0]
    there[slots[kept]] = True
    is_visual = given.visual[0, there]
    assert len(seen["given"]) == len(seen["after"]) == LEVELS
    for level, features in enumerate(seen["given"]):
        added = (seen["after"][level] - seen["before"][level])[0]
        assert len(features) == len(slots)
        assert features.abs().max() > 0.1
        torch.testing.assert_close(added[is_visual], plan.merge(features[None])[0])
        assert not added[~is_visual].any()


def test_the_method_is_the_models_own_again():
    model = FAMILIES["qwen3_vl"].model()
    decoder = decoder_of(model)
    plain = decoder._deepstack_process
    with tr.reduce(model, tr.Random(), tr.Single(0, 0.4)), torch.no_grad():
        assert decoder._deepstack_process != plain
        batch(FAMILIES["qwen3_vl"], (1,)).run(model)
    assert decoder._deepstack_process == plain
    assert "_deepstack_process" not in vars(decoder)
