"""From the first layer to the last nothing waits for a tensor's value; before them, one place."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tests.engine.host_syncs import HostSyncs
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:this ScorerMLP is untrained")
STRATEGIES = sorted(set(tr.strategies) - {"none"})
SCHEDULE = tr.Explicit(layers=(0, 2, 4), keeps=(0.8, 0.5, 0.2))
OURS = "inputs.py:describe"


def counted(family, name, call, images=(1, 0, 2), side="left", **options):
    """The questions of one call under a reduction."""
    model, prompt, syncs = family.model(), batch(family, images, side), HostSyncs()
    handles = syncs.watch(model)
    with tr.reduce(model, name, SCHEDULE, **options) as reduction, prompt.shown(reduction), syncs:
        syncs.phase = "before"  # a family without an adapter had a layer of it tried
        call(model, prompt)
    for handle in handles:
        handle.remove()
    assert reduction.plans
    return syncs


def prefill(model, prompt):
    with torch.inference_mode():
        model(**prompt.inputs, use_cache=True)


def train(model, prompt):
    model.train()
    model(**prompt.inputs, labels=prompt.labels).loss.backward()


def generate(model, prompt):
    model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)


def defined(name, family):
    """The position rules under which a strategy works on a family; none where it is refused."""
    adapter = tr.adapters[family.adapter]()
    refused = adapter.lacks(tr.strategies[name].needs, family.model())
    return () if refused else sorted(adapter.positions)


TRIED = [
    pytest.param(name, family, rule, id=f"{name}-{family}-{rule}")
    for name in STRATEGIES
    for family in FAMILIES.values()
    if family.main
    for rule in defined(name, family)
]


@pytest.mark.parametrize(("name", "family", "positions"), TRIED)
def test_no_wait_inside_the_layers(name, family, positions):
    assert counted(family, name, prefill, positions=positions).of("layers") == []


@pytest.mark.parametrize("call", [train, generate])
@pytest.mark.parametrize("name", ["pyramid_drop", "fastv", "pooling", "scorer_mlp"])
def test_no_wait_in_training_and_decoding(name, call):
    assert counted(FAMILIES["llava"], name, call, positions="compact").of("layers") == []


@pytest.mark.parametrize("images", [(1,), (1, 0, 2)])
@pytest.mark.parametrize("call", [prefill, generate])
def test_one_wait_before_them_for_a_prompt(call, images):
    syncs = counted(FAMILIES["llama"], "pyramid_drop", call, images)
    waits = [place for _, place in syncs.of("before")]
    # the geometry of pictures is kept on the host, so that reading it waits for nothing
    assert [p for p in waits if "geometry" not in p and "genexpr" not in p] == [OURS]


def test_a_wait_is_seen():
    class Curious(tr.PyramidDrop):
        def score(self, tokens):
            score = super().score(tokens)
            assert score.max().item() >= 0
            assert (score >= 0).any()
            score[score < 0] = 0
            return score

    syncs = counted(FAMILIES["llama"], Curious(), prefill)
    assert {name for name, _ in syncs.of("layers")} >= {"item", "__bool__", "__setitem__"}
