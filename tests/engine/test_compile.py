"""`torch.compile`: layers stay whole graphs, numbers stay, and a second prompt compiles nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

STOPS = tr.Explicit((0, 2, 4), (0.75, 0.5, 0.25))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def compile_layers(decoder: Any) -> None:
    """Each layer's forward is one graph, or an error."""
    for layer in decoder.layers:
        layer.forward = torch.compile(layer.forward, backend="eager", fullgraph=True)


def compile_decoder(decoder: Any) -> None:
    """The whole decoder; what happens between layers is left out of the graphs."""
    decoder.compile(backend="eager")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


SMOKE = ("llava", "pyramid_drop")
COMPILED = [
    pytest.param(name, strategy, marks=[] if (name, strategy) == SMOKE else [pytest.mark.slow])
    for name in ("llava", "qwen2_5_vl")
    for strategy in ("pyramid_drop", "fastv", "random", "pooling")
]


@pytest.mark.parametrize(("name", "strategy"), COMPILED)
def test_layers_are_whole_graphs_with_the_same_numbers(name: str, strategy: str) -> None:
    given, other = (batch(FAMILIES[name], (1, 1), seed=seed) for seed in (0, 1))
    model = FAMILIES[name].model()
    with tr.reduce(model, strategy, STOPS) as reduction, torch.no_grad():
        plain = given.run(model, reduction, use_cache=False).logits
        kept = reduction.kept
        compile_layers(model.get_decoder())
        found = given.run(model, reduction, use_cache=False).logits
        assert (found - plain).abs().max() < 1e-4
        for layer, rows in kept.items():
            assert all(map(torch.equal, rows, reduction.kept[layer]))
        made = graphs()
        assert 3 <= made <= 7  # a graph for each length; Qwen2.5's tower has none
        assert not counters["graph_break"]
        other.run(model, reduction, use_cache=False)
        assert graphs() == made, "a prompt of the same shape was compiled again"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["pyramid_drop", "fastv"])
def test_a_compiled_decoder_breaks_between_its_layers_alone(strategy: str) -> None:
    given = batch(FAMILIES["llava"], (1, 1))
    model = FAMILIES["llava"].model()
    with tr.reduce(model, strategy, STOPS) as reduction, torch.no_grad():
        plain = given.run(model, reduction, use_cache=False).logits
        compile_layers(model.get_decoder())
        given.run(model, reduction, use_cache=False)
        inside = counters["stats"]["calls_captured"]
    torch._dynamo.reset()
    counters.clear()
    model = FAMILIES["llava"].model()
    with tr.reduce(model, strategy, STOPS) as reduction, torch.no_grad():
        compile_decoder(model.get_decoder())
        found = given.run(model, reduction, use_cache=False).logits
        assert (found - plain).abs().max() < 1e-4
        assert counters["stats"]["calls_captured"] >= inside  # every layer's, and what is around
        reasons = list(counters["graph_break"])
        assert all("torch.compiler.disable" in reason for reason in reasons), reasons
        made = graphs()
        given.run(model, reduction, use_cache=False)
        assert graphs() == made


@pytest.mark.slow
def test_generation_from_compiled_layers() -> None:
    given = batch(FAMILIES["llava"], (1, 2), "left")
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [7]}
    model = FAMILIES["llava"].model()
    with tr.reduce(model, "pyramid_drop", STOPS):
        plain = model.generate(**given.inputs, **options)
        with torch._dynamo.config.patch(recompile_limit=64):
            for layer in model.get_decoder().layers:
                layer.forward = torch.compile(layer.forward, backend="eager")
            assert torch.equal(model.generate(**given.inputs, **options), plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at inputs
def test_training_through_compiled_layers() -> None:
    given = batch(FAMILIES["llava"], (1, 1))
    losses, gradients = [], []
    for compiled in (False, True):
        model = FAMILIES["llava"].model().train()
        if compiled:
            for layer in model.get_decoder().layers:
                layer.forward = torch.compile(layer.forward, backend="aot_eager", fullgraph=True)
        with tr.reduce(model, "pyramid_drop", STOPS):
            loss = model(**given.inputs, labels=given.labels, use_cache=False).loss
            loss.backward()
        losses.append(loss.detach())
        gradients.append(model.get_decoder().layers[3].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
