"""Activation memory: byte for byte what autograd keeps, and what is alive in a prefill."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.cost import DecoderShape, activations, logits_bytes, shape_of, tower_of
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.plain import checkpoint_activations

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "intermediate_size": 160,
    "pad_token_id": 0,
}
TOKENS = 50


def decoder(kind: str, dtype: torch.dtype = torch.float32, **options):
    config = getattr(transformers, f"{kind}Config")(**SIZES | options)
    config._attn_implementation = "sdpa"
    return transformers.AutoModel.from_config(config).to(dtype)


def given(dtype: torch.dtype, n: int = TOKENS) -> torch.Tensor:
    return torch.randn(1, n, SIZES["hidden_size"], dtype=dtype)


@contextmanager
def kept_for_backward(model) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps and that is no weight or table, by address."""
    mine = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}
    alive = []

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in mine:
            alive.append(x)
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield found


def saved(model, x: torch.Tensor) -> int:
    with kept_for_backward(model) as found:
        model(inputs_embeds=x.requires_grad_(), use_cache=False)
    return sum(found.values())


def of_layers(kind: str, dtype: torch.dtype, checkpointing: bool = False, layers=(2, 4)) -> int:
    """What two layers more make autograd keep: the last norm and the tables are in both."""
    sums = []
    for n in layers:
        model = decoder(kind, dtype, num_hidden_layers=n).train()
        if checkpointing:
            checkpoint_activations(model, reentrant=False)
        sums.append(saved(model, given(dtype)))
    return sums[1] - sums[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2"])
def test_stored_is_what_autograd_keeps(kind, dtype):
    shape = shape_of(decoder(kind).config)
    price = activations(shape, [TOKENS] * 2, dtype.itemsize)
    assert of_layers(kind, dtype) == price.stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checkpointing_keeps_the_inputs_of_layers(dtype):
    shape = shape_of(decoder("Llama").config)
    price = activations(shape, [TOKENS] * 2, dtype.itemsize)
    again = activations(shape, [TOKENS], dtype.itemsize).stored
    assert of_layers("Llama", dtype, checkpointing=True) == price.checkpointed - again


class Alive(TorchDispatchMode):
    """Counts bytes of the storages that tensors hold on to, at every operation."""

    def __init__(self, *free: torch.Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self.holders: dict[int, int] = {x.untyped_storage().data_ptr(): 1 for x in free}
        self.bytes: dict[int, int] = dict.fromkeys(self.holders, 0)
        self.seen: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and id(x) not in self.seen:
                self._meet(x)
        self.most = max(self.most, self.now)
        return out

    def _meet(self, x: torch.Tensor) -> None:
        at = x.untyped_storage().data_ptr()
        if not at:
            return
        if at not in self.holders:
            self.holders[at], self.bytes[at] = 0, x.untyped_storage().nbytes()
            self.now += self.bytes[at]
        self.holders[at] += 1
        self.seen.add(id(x))
        weakref.finalize(x, self._leave, at, id(x))

    def _leave(self, at: int, who: int) -> None:
        self.seen.discard(who)
        self.holders[at] -= 1
        if not self.holders[at]:
            del self.holders[at]
            self.now -= self.bytes.pop(at)


def alive(model, call, *free: torch.Tensor) -> int:
    """The most that is alive at once; `free` is the caller's."""
    gc.collect()
    with torch.no_grad(), Alive(*model.parameters(), *model.buffers(), *free) as watch:
        call()
    return watch.most


@pytest.mark.parametrize(
    ("kind", "inner", "dtype"),
    pairwise(["Llama", "Qwen2"], [16, 160, 1600], [torch.float32, torch.bfloat16]),
    ids=str,
)
def test_prefill_is_what_is_alive_at_once(kind, inner, dtype):
    """In layers behind the first, whose input is the caller's: exactly, FFN or attention."""
    model, x = decoder(kind, dtype, intermediate_size=inner).eval(), given(dtype)
    most = alive(model, lambda: model(inputs_embeds=x, use_cache=False), x)
    assert most == activations(shape_of(model.config), [TOKENS] * 3, dtype.itemsize).prefill


@pytest.mark.parametrize("kind", ["CLIPVision", "SiglipVision", "PixtralVision"])
def test_towers_are_near(kind):
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        image_size=40, patch_size=4, attn_implementation="sdpa",
    )  # fmt: skip
    model, x = transformers.AutoModel.from_config(config).eval(), torch.zeros(1, 3, 40, 40)
    most = alive(model, lambda: model(pixel_values=x), x)
    tower = tower_of({"vision_config": config, "model_type": "llava"})
    none = DecoderShape(1, 1, 1, 1, 1, 1, 1)
    places = tower.places([tr.cost.Grid(10, 10)])
    assert activations(none, (), 4, tower, places).prefill == pytest.approx(most, rel=0.2)


def test_a_reduction_stores_what_is_left():
    """Layers behind a stop keep what their own tokens take, but for the indices of the choice."""
    family = FAMILIES["llama-gqa"]
    inputs = batch(family, (2,))
    found = []
    for keep in (1.0, 0.2):
        model = family.model("sdpa").train()
        with tr.reduce(model, "stride", tr.Single(3, keep)) as reduction:
            with kept_for_backward(model) as kept:
                inputs.run(model, reduction, use_cache=False)
            tokens = [row[0] for row in reduction.report.tokens_per_layer]
        found.append((sum(kept.values()), activations(shape_of(model.config), tokens, 4)))
    (full, whole), (short, less) = found
    assert less.stored < whole.stored
    assert full - short == pytest.approx(whole.stored - less.stored, rel=0.1)


def test_numbers_add_up():
    shape = DecoderShape(4, 8, 20, 2, 1, 4, 100)
    one, other = activations(shape, [10, 10, 10, 10]), activations(shape, [10, 10, 5, 5])
    assert one.prefill == other.prefill  # the first layer is as long
    assert other.stored == one.stored * 3 // 4
    assert one.checkpointed == 4 * 10 * 8 * 2 + one.stored // 4
    assert activations(shape, []) == tr.cost.Activations(0, 0, 0)
    assert logits_bytes(shape, 3, 4) == 1200
