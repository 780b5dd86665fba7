"""From the first layer to the last nothing waits for a tensor's value; before them, one place."""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tests.engine.host_syncs import HostSyncs
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.trial import shared_model

pytestmark = pytest.mark.filterwarnings("ignore:this ScorerMLP is untrained")
STRATEGIES = sorted(name for name, kind in tr.strategies.items() if kind.reduces)
MAIN = [family for family in FAMILIES.values() if family.main]
SCHEDULE = tr.Explicit(layers=(0, 2, 4), keeps=(0.8, 0.5, 0.2))
OURS = "prompt.py:read_prompt"


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


def fits(name, family):
    """Whether a strategy works on a family."""
    adapter = tr.adapters[family.adapter]()
    return not adapter.missing_evidence(
        tr.strategies.build(name).needs, shared_model(family.name, "sdpa")
    )


def waiting(pairs):
    """Where something waits inside the layers, under every position rule of each pair's family."""
    found = {
        (name, family.name, rule): counted(family, name, prefill, positions=rule).of("layers")
        for name, family in pairs
        for rule in sorted(tr.adapters[family.adapter].positions)
    }
    assert found
    return {where: waits for where, waits in found.items() if waits}


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_waits_inside_the_layers(name, request):
    """Each on one family, in turn; with `--full` on every family."""
    families = [family for family in MAIN if fits(name, family)]
    turn = STRATEGIES.index(name) % len(families)
    full = request.config.getoption("--full", default=False)
    assert waiting((name, family) for family in (families if full else [families[turn]])) == {}


@pytest.mark.parametrize("family", MAIN, ids=str)
def test_on_no_family_anything_waits_inside_the_layers(family):
    """Each under one strategy, in turn."""
    names = [name for name in STRATEGIES if fits(name, family)]
    assert waiting([(names[MAIN.index(family) % len(names)], family)]) == {}


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
