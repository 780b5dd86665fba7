"""A model on several devices: indices, masks and rotary tables move with the layers.

The second device is `meta`, which computes shapes alone; every operation is checked for tensors of
two devices, as an accelerator would.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers.cache_utils import Cache

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

BORDER = 3
COPIES = {"aten._to_copy.default", "aten.copy_.default", "aten.to.device"}


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices; numbers may come from anywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        devices = {x.device.type for x in tensors}
        if len(devices) > 1 and str(func) not in COPIES:
            raise RuntimeError(f"{func} was given tensors on {sorted(devices)}")
        return func(*args, **(kwargs or {}))


def split(model: nn.Module, decoder: Any) -> nn.Module:
    """Layers from BORDER on, the norm and the head on `meta`; inputs are moved as they come."""
    late = [*decoder.layers[BORDER:], decoder.norm, model.get_output_embeddings()]
    for module in late:
        module.to("meta")
        forward = module.forward

        @wraps(forward)  # as accelerate does: a signature stays
        def there(*args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
            def move(x: Any) -> Any:
                return x.to("meta") if isinstance(x, Tensor) else x

            caches = {k: x for k, x in kwargs.items() if isinstance(x, Cache)}
            moved = {k: x for k, x in kwargs.items() if k not in caches}
            return _forward(*tree_map(move, args), **tree_map(move, moved), **caches)

        module.forward = there  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("name", "layers", "strategy", "logits"),
    pairwise(
        ["llava", "qwen3_vl", "gemma3"],
        [(0, BORDER, 4), (1, 2), (4, 5)],
        ["random", "pooling", "pyramid_drop"],
        ["full", "text"],
    ),
    ids=str,
)
def test_everything_moves_with_the_layers(
    name: str, layers: tuple[int, ...], strategy: str, logits: Any
) -> None:
    family = FAMILIES[name]
    model = family.model()
    split(model, tr.adapters[family.adapter]().decoder(model))
    given = batch(family, (1, 0, 2))
    keeps = tuple(0.6 / (i + 1) for i in range(len(layers)))
    options = {"output_hidden_states": True} if logits == "full" else {}
    with (
        tr.reduce(model, strategy, tr.Explicit(layers, keeps), logits=logits) as reduction,
        torch.no_grad(),
        OneDevice(),
    ):
        out = given.run(model, reduction, use_cache=False, **options)
        assert out.logits.device.type == "meta"
        if logits == "full":
            assert out.logits.shape[:2] == given.real.shape
            assert all(x.shape[:2] == given.real.shape for x in out.hidden_states)
        counts = given.counts
        for stop, said in zip(reduction.stops, reduction.report.stops, strict=True):
            assert said["kept"] == [stop.count(n) for n in counts]


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("layers", [(0, BORDER, 4), (1, 2), (4, 5)], ids=str)
def test_decoding_moves_with_the_layers(layers: tuple[int, ...], positions: Any) -> None:
    family = FAMILIES["llava"]
    model = family.model()
    split(model, model.get_decoder())
    given = batch(family, (1, 0, 2))
    mask, word = given.inputs["attention_mask"], given.inputs["input_ids"][:, :1]
    keeps = tuple(0.6 / (i + 1) for i in range(len(layers)))
    with (
        tr.reduce(model, "random", tr.Explicit(layers, keeps), positions=positions),
        torch.no_grad(),
        OneDevice(),
    ):
        cache = tr.cache_of(model(**given.inputs, use_cache=True))
        for _ in range(2):
            mask = nn.functional.pad(mask, (0, 1), value=1)
            out = model(input_ids=word, attention_mask=mask, **tr.with_cache(model, cache))
            assert out.logits.shape[:2] == word.shape
    places = [layer.keys.device.type for layer in cache.layers]
    assert places == ["cpu" if i < BORDER else "meta" for i in range(len(places))]
    assert {layer.get_seq_length() for layer in cache.layers} == {mask.shape[1]}


def test_a_score_across_the_border_is_refused() -> None:
    model = FAMILIES["llava"].model()
    split(model, model.get_decoder())
    given = batch(FAMILIES["llava"], (1,))
    with (
        pytest.raises(ValueError, match=r"cpu and meta.*move the stop"),
        tr.reduce(model, "fastv", tr.Single(BORDER, 0.5)),
        torch.no_grad(),
        OneDevice(),
    ):
        model(**given.inputs, use_cache=False)


def test_the_check_sees_what_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenreduce.engine.sequence import Sequence

    monkeypatch.setattr(Sequence, "move", lambda *_: None)
    model = FAMILIES["llava"].model()
    split(model, model.get_decoder())
    given = batch(FAMILIES["llava"], (1, 2))
    with (
        pytest.raises(RuntimeError, match=r"tensors on .*cpu.*meta"),
        tr.reduce(model, "random", tr.Single(4, 0.5)),
        torch.no_grad(),
        OneDevice(),
    ):
        model(**given.inputs, use_cache=False)
