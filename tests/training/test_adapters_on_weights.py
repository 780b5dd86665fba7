"""PEFT adapters and quantised projections under a reduction: modules are called, never read."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenreduce as tr
from tests.training.reference import (
    SCHEDULE,
    assert_close,
    assert_same,
    gradients,
    recorded,
    replayed,
)
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

peft = pytest.importorskip("peft", reason="LoRA needs peft")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT reads renamed attributes
LLAVA = FAMILIES["llava"]
TARGETS = r".*language_model.*(q_proj|k_proj|v_proj|o_proj)"
DROPPING = ("pyramid_drop", "fastv", "random")


def config(**options: Any) -> Any:
    return peft.LoraConfig(
        r=4, target_modules=TARGETS, lora_dropout=0.0, init_lora_weights=False, **options
    )


def adapted(model: Any, **options: Any) -> Any:
    """The same adapter every time, with weights that do something."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, config(**options))


class Quantised(nn.Module):
    """A projection with frozen weights of 8 bits, made into floats as it runs.

    Like those of bitsandbytes: no float weight to read, one scale per output.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        scale = plain.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.in_features, self.out_features = plain.in_features, plain.out_features
        numbers = (plain.weight.detach() / scale).round().to(torch.int8)
        self.packed = nn.Parameter(numbers.flatten(), requires_grad=False)
        self.register_buffer("scale", scale)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        weight = self.packed.view(self.out_features, self.in_features) * self.scale
        return nn.functional.linear(x, weight.to(x.dtype))


class Adapted(nn.Module):
    """LoRA over any module, as PEFT has it for the kinds of layers that it knows."""

    def __init__(self, base: nn.Module, width: int, out: int) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = (
            nn.Linear(width, 4, bias=False),
            nn.Linear(4, out, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def quantised(name: str = "llava") -> Any:
    """A tiny model in the manner of QLoRA: nothing but the adapters can be trained."""
    model = FAMILIES[name].model().requires_grad_(False)
    torch.manual_seed(3)
    for layer in model.get_decoder().layers:
        attention = layer.self_attn
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            plain = getattr(attention, part)
            over = Adapted(Quantised(plain), plain.in_features, plain.out_features)
            setattr(attention, part, over)
    return model.train()


@pytest.mark.parametrize(("order", "logits"), [("lora first", "full"), ("reduce first", "text")])
@pytest.mark.parametrize("name", DROPPING)
def test_lora_is_that_of_the_masked_reference(order, name, logits):
    prompt = batch(LLAVA, (1, 0, 2))
    model = LLAVA.model()
    if order == "lora first":
        model = adapted(model)
    reduction = tr.reduce(model, name, SCHEDULE, positions="keep", logits=logits)
    if order == "reduce first":
        model = adapted(model)
    core = model.get_base_model()
    with recorded(core, reduction) as kept:
        loss = model(**prompt.inputs, labels=prompt.labels).loss
        loss.backward()
    reduction.remove()
    other = adapted(LLAVA.model())
    with replayed(other.get_base_model(), kept):
        wanted = other(**prompt.inputs, labels=prompt.labels).loss
        wanted.backward()
    assert_close(loss, wanted)
    found = gradients(model)
    assert_same(found, gradients(other), share=1e-3)
    assert all("lora_" in entry for entry in found)
    assert len(found) == 2 * 4 * 6
    merged = model.merge_and_unload()  # nothing of the reduction is in its way
    with torch.no_grad():
        logits = adapted(LLAVA.model())(**prompt.inputs).logits
        torch.testing.assert_close(merged(**prompt.inputs).logits, logits, atol=1e-4, rtol=1e-4)


def test_a_merged_model_can_be_reduced_again():
    prompt = batch(LLAVA, (1, 2))
    model, found = adapted(LLAVA.model()), []
    for _ in range(2):
        with torch.no_grad(), tr.reduce(model, "fastv", SCHEDULE) as reduction:
            found.append((model(**prompt.inputs).logits, reduction.kept[2]))
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_a_saved_reduction_fits_the_peft_model_and_its_base(tmp_path):
    prompt = batch(LLAVA, (1, 2))
    model = adapted(LLAVA.model())
    with torch.no_grad(), tr.reduce(model, "pyramid_drop", SCHEDULE) as reduction:
        wanted = model(**prompt.inputs).logits
        reduction.save(tmp_path)
    model.save_pretrained(tmp_path)
    assert {"tokenreduce.json", "adapter_config.json"} <= {x.name for x in tmp_path.iterdir()}
    again = peft.PeftModel.from_pretrained(LLAVA.model(), tmp_path)
    for target in (again, again.merge_and_unload()):
        with torch.no_grad(), tr.load(target, tmp_path) as reduction:
            logits = target(**prompt.inputs).logits
        assert reduction.report.applied == [True, True]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", [n for n in tr.strategies if n not in ("none", "downsample")])
def test_every_method_calls_quantised_projections(strategy):
    """Their weights are bytes: a method that read them would fail or choose otherwise."""
    prompt = batch(LLAVA, (1, 0, 2))
    found = []
    for packed in (True, False):
        model = quantised()
        if not packed:
            _unpack(model)
        with tr.reduce(model, strategy, SCHEDULE) as reduction:
            loss = model(**prompt.inputs, labels=prompt.labels).loss
            loss.backward()
            report = reduction.report
        assert report.applied == [True, False, True]
        found.append((loss.detach(), reduction.kept, gradients(model), report.to_dict()))
    (loss, kept, ours, said), (wanted, others, theirs, told) = found
    assert_close(loss, wanted)
    for layer, rows in others.items():
        assert all(map(torch.equal, rows, kept[layer]))
    assert_same(ours, theirs, share=1e-3)
    assert all("lora_" in entry for entry in ours)
    assert said["kv_bytes"] == told["kv_bytes"]
    assert said["flops"] == told["flops"]


def _unpack(model: Any) -> None:
    """The same numbers as plain float matrices."""
    for layer in model.get_decoder().layers:
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            over = getattr(layer.self_attn, part)
            base = over.base_layer
            plain = nn.Linear(base.in_features, base.out_features, bias=False)
            plain.weight.data = base.packed.view(plain.weight.shape) * base.scale
            over.base_layer = plain.requires_grad_(False)


@pytest.mark.parametrize("name", DROPPING)
def test_quantised_with_adapters_is_the_masked_reference(name):
    prompt = batch(LLAVA, (1, 0, 2))
    model, other = quantised(), quantised()
    with (
        tr.reduce(model, name, SCHEDULE, positions="keep") as reduction,
        recorded(model, reduction) as kept,
    ):
        loss = model(**prompt.inputs, labels=prompt.labels).loss
        loss.backward()
    with replayed(other, kept):
        wanted = other(**prompt.inputs, labels=prompt.labels).loss
        wanted.backward()
    assert_close(loss, wanted)
    assert_same(gradients(model), gradients(other), share=1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_a_decoder_of_bytes_alone(first):
    """The first weights of a decoder say nothing about its cache, where they are quantised."""
    family = FAMILIES["llama"]
    prompt = batch(family, (1, 2))
    model, plain = family.model(), family.model()
    for layer in model.get_decoder().layers:
        layer.self_attn.q_proj = Quantised(layer.self_attn.q_proj)
    if first:
        table = model.get_decoder().embed_tokens
        table.weight = nn.Parameter(table.weight.detach().to(torch.int8), requires_grad=False)
    sizes = []
    for each in (model, plain):
        with torch.no_grad(), tr.reduce(each, "pyramid_drop", SCHEDULE) as reduction:
            with reduction.visual(prompt.visual):
                each(**prompt.inputs)
            sizes.append(reduction.report.kv_bytes)
    assert sizes[0] == sizes[1]


def test_the_generic_adapter_reads_a_quantised_decoder():
    """It tries a layer on noise, of the kind that the layer takes: floats."""
    from tokenreduce.testing.families.generic import RECIPES

    family = RECIPES[0]
    model = copy.deepcopy(family.model())
    prompt = batch(family, (1, 2))
    for layer in model.get_decoder().layers:
        for part in ("q_proj", "k_proj"):
            setattr(layer.self_attn, part, Quantised(getattr(layer.self_attn, part)))
    with torch.no_grad(), tr.reduce(model, "pyramid_drop", SCHEDULE) as reduction:
        prompt.run(model, reduction)
    assert reduction.report.applied == [True, True]
