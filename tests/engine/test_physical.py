"""What really happens: tokens that layers run on, bytes in the cache, FLOPs that are spent."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA, NEXT = FAMILIES["llava"], FAMILIES["llava_next"]


@contextmanager
def widths(model):
    """Tokens that the attention and the MLP of every decoder layer are given."""
    layers = model.get_decoder().layers
    seen = [[] for _ in layers]

    def watch(i):
        def hook(module, args, kwargs):
            seen[i].append((args[0] if args else kwargs["hidden_states"]).shape[1])

        return hook

    handles = []
    for i, layer in enumerate(layers):
        for part in (layer.mlp, layer.self_attn):
            handles.append(part.register_forward_pre_hook(watch(i), with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("family", "name", "layers"),
    pairwise([LLAVA, NEXT], ["random", "pyramid_drop", "fastv", "stride", "vtw"], [(0, 3), (2, 4)]),
    ids=str,
)
def test_no_layer_runs_on_more_than_the_report_says(family, name, layers):
    model, prompt = family.model(), batch(family, (1, 0, 2))
    schedule = tr.Explicit(layers, (0.5, 0.2))
    with tr.reduce(model, name, schedule) as reduction, widths(model) as seen:
        out = model.generate(
            **prompt.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
    report, length = reduction.report, prompt.visual.shape[1]
    stored = [layer.keys.shape[-2] for layer in tr.cache_of(out).layers]
    for i, row in enumerate(report.tokens_per_layer):
        width = max(row) if i >= layers[0] else length
        assert seen[i] == [width, width, 1, 1, 1, 1]  # the longest sample; no hidden second run
        assert stored[i] == width + 2
    assert max(report.tokens_per_layer[layers[1]]) < max(report.tokens_per_layer[0]) or (
        layers[0] == 0
    )
    assert tr.cache_of(out).get_seq_length() == length + 2


def test_nothing_but_the_score_is_computed_twice(llava):
    """A score runs no attention, no MLP and no layer: only the projections that it needs."""
    prompt, calls = batch(LLAVA, (1, 2)), {}
    layers = llava.get_decoder().layers

    def count(name):
        def hook(module, args, output):
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [
        module.register_forward_hook(count(f"{i}.{name}"))
        for i, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if name
    ]
    found = {}
    for strategy in ("random", "fastv", "pyramid_drop"):
        calls.clear()
        with torch.no_grad(), tr.reduce(llava, strategy, tr.Single(3, 0.5)):
            llava(**prompt.inputs)
        found[strategy] = {name: n for name, n in calls.items() if n != 1}
    for handle in handles:
        handle.remove()
    assert found["random"] == {}
    # the query of the asking row; keys are taken as the layer makes them
    assert found["fastv"] == {"2.self_attn.q_proj": 2, "2.input_layernorm": 2}
    assert set(found["pyramid_drop"]) == {
        "3.self_attn.q_proj", "3.self_attn.k_proj", "3.input_layernorm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "images", "name"),
    pairwise([(0, 3), (2, 4)], [(1,), (2,), (1, 1)], ["random", "stride"]),
    ids=str,
)
def test_reported_flops_are_spent(llava, layers, images, name):
    """Without padding, the count of every matrix product in the decoder layers, to the FLOP."""
    prompt = batch(LLAVA, images)
    if len(images) > 1:
        row = prompt.row(0)
        inputs = {n: torch.cat([x, x]) for n, x in row.inputs.items()}
    else:
        inputs = prompt.inputs
    with torch.no_grad():
        plain = _flops(llava, inputs)
        with tr.reduce(llava, name, tr.Explicit(layers, (0.5, 0.2))) as reduction:
            spent = _flops(llava, inputs)
    assert reduction.report.flops == spent
    assert reduction.report.flops_full == plain
    assert spent < plain


def _flops(model, inputs):
    """FLOPs of the decoder layers alone, as torch counts them; without the table of angles.

    It counts products of matrices; a CPU's fused attention it does not know.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, depth=8) as counter:
        model(**inputs)
    counts = counter.get_flop_counts()
    name = next(key for key in counts if key.endswith("language_model"))
    table = counts.get(f"{name}.rotary_emb", {})
    return sum(counts[name].values()) - sum(table.values())


@pytest.mark.parametrize("name", ["fastv", "pyramid_drop"])
def test_a_score_costs_what_the_cost_model_says(llava, name):
    prompt = batch(LLAVA, (1,))
    with torch.no_grad(), tr.reduce(llava, name, tr.Single(3, 0.5)) as reduction:
        spent = _flops(llava, prompt.inputs)
    text = llava.config.get_text_config()
    shape = tr.cost.shape_of(text)
    length = prompt.visual.shape[1]
    stayed = reduction.report.tokens_per_layer[3][0]
    shared = length if name == "fastv" else stayed  # keys that layer and score make only once
    keys = 2 * shared * shape.hidden * shape.head_dim * shape.kv_heads
    assert spent - reduction.report.flops == 2 * tr.cost.selection_macs(shape, length) - keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reported_bytes_are_held(llava, dtype, schedule):
    prompt = batch(LLAVA, (2,))
    llava = llava.to(dtype)
    inputs = prompt.inputs | {"pixel_values": prompt.inputs["pixel_values"].to(dtype)}
    with torch.no_grad():
        full = tr.cache_of(llava(**inputs))
        with tr.reduce(llava, "random", schedule) as reduction:
            cache = tr.cache_of(llava(**inputs))

    def held(cache):
        return sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))

    assert reduction.report.kv_bytes == held(cache)
    assert reduction.report.kv_bytes_full == held(full)
    owned = sum(
        t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    assert owned == held(cache)  # and not a view into the full length


def test_the_report_is_data(llava, schedule):
    prompt = batch(LLAVA, (1, 0, 2))
    with torch.no_grad(), tr.reduce(llava, "pyramid_drop", schedule) as reduction:
        llava(**prompt.inputs)
    data = json.loads(json.dumps(reduction.report.to_dict()))
    assert data["visual_tokens"] == [25, 0, 50]
    assert data["stops"] == [
        {"layer": 2, "keep": 0.5, "kept": [12, 0, 25]},
        {"layer": 4, "keep": 0.2, "kept": [5, 0, 10]},
    ]
    text = [int(n) for n in (prompt.real & ~prompt.visual).sum(1)]
    rows = [[25, 0, 50]] * 2 + [[12, 0, 25]] * 2 + [[5, 0, 10]] * 2
    assert data["tokens_per_layer"] == [
        [t + v for t, v in zip(text, row, strict=True)] for row in rows
    ]
    assert data["applied"] == [True, False, True]
    assert "25 0 50" in str(reduction.report)
    assert [reduction.plans[i].counts().tolist() for i in (2, 4)] == [[12, 0, 25], [5, 0, 10]]


def test_two_forwards_agree_and_the_callers_tensors_stay(llava, schedule):
    prompt = batch(LLAVA, (1, 2))
    before = {name: x.clone() for name, x in prompt.inputs.items()}
    with torch.no_grad(), tr.reduce(llava, "pyramid_drop", schedule):
        a, b = (llava(**prompt.inputs).logits for _ in range(2))
    assert torch.equal(a, b)
    assert all(torch.equal(x, before[name]) for name, x in prompt.inputs.items())
