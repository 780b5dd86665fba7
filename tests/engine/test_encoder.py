"""What holds for a reduction inside a plain vision encoder, of every kind that is read."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenreduce as tr
from tests.gradients import checkpointing_changes_no_gradient
from tokenreduce.testing.encoders import KINDS, SIDE, encoder
from tokenreduce.testing.plain import checkpoint_activations
from tokenreduce.tower import encoder_tower

CLOSE = 1e-5


def pictures(n: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def call(model: nn.Module, x: Tensor) -> Tensor:
    """One tensor that depends on everything the encoder says."""
    given: Any = model
    if hasattr(model, "get_image_features"):
        return given.get_image_features(pixel_values=x).pooler_output
    out = given(x) if not hasattr(model, "config") else given(pixel_values=x)
    if isinstance(out, Tensor):
        return out
    found = next(
        out.get(name) for name in ("logits", "image_embeds", "pooler_output") if name in out
    )
    assert isinstance(found, Tensor)
    return found


def by_hand(kind: str, model: Any, x: Tensor, tome: tr.ToMe) -> Tensor:
    """The hidden states behind the last layer, with the merge written between attention and MLP."""
    tower: Any = encoder_tower(model)
    seen: list[Tensor] = []
    handle = tower.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    call(model, x)
    handle.remove()
    h, size, n = seen[0], torch.ones(*seen[0].shape[:2]), seen[0].shape[1]
    for layer, left in zip(
        tower.layers, tome.counts(len(tower.layers), n, tower.classes), strict=True
    ):
        norm = first_of(layer, "norm1", "layer_norm1", "layernorm_before")
        y = norm(h)
        if kind.startswith("timm"):
            q, k, v = layer.attn.qkv(y).chunk(3, dim=-1)
            out = layer.attn.proj
        else:
            attention = first_of(layer, "self_attn", "attention.attention", "attention")
            q, k, v = (first_of(attention, f"{x[0]}_proj", x)(y) for x in ("query", "key", "value"))
            out = first_of(
                layer, "self_attn.out_proj", "attention.output.dense", "attention.o_proj"
            )
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if tome.prop_attn:
            scores = scores + size.log()[:, None, None]
        h = h + out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h, size = merged(h, size, k.mean(dim=1), h.shape[1] - left, tower.classes)
        y = first_of(layer, "norm2", "layer_norm2", "layernorm_after")(h)
        h = h + layer.mlp(y) if hasattr(layer, "mlp") else layer.output(layer.intermediate(y), h)
    return h


def first_of(owner: nn.Module, *names: str) -> Any:
    """The part that goes by one of these names in this library and this release."""
    parts = dict(owner.named_modules())
    return next(parts[name] for name in names if name in parts)


def merging(model: nn.Module, **options: Any) -> tr.ToMe:
    """A merge with the attention that this encoder can do: ViT's adds no mask up to 5.8."""
    tower: Any = encoder_tower(model)
    return tr.ToMe(**{"prop_attn": tower.adds_mask(), **options})


def merged(x: Tensor, size: Tensor, key: Tensor, r: int, fixed: int) -> tuple[Tensor, Tensor]:
    """One picture after the other, one pair after the other."""
    if not r:
        return x, size
    rows, sizes = [], []
    for one, weight, k in zip(x, size, key, strict=True):
        k = k / k.norm(dim=-1, keepdim=True)
        pairs = []
        for i in range(0, len(one), 2):
            others = [(float(k[i] @ k[j]), j) for j in range(1, len(one), 2) if j >= fixed]
            if i >= fixed:
                pairs.append((*max(others), i))
        pairs.sort(reverse=True)
        total, weight, gone = one * weight[:, None], weight.clone(), set()
        for _, j, i in pairs[:r]:
            total[j], weight[j] = total[j] + total[i], weight[j] + weight[i]
            gone.add(i)
        front = list(range(fixed))
        seeking = [i for _, _, i in pairs[r:]]
        if fixed:
            seeking.sort()
        order = front + seeking + [j for j in range(1, len(one), 2) if j >= fixed]
        rows.append((total / weight[:, None])[order])
        sizes.append(weight[order])
    return torch.stack(rows), torch.stack(sizes)


def last(model: nn.Module, x: Tensor, tome: tr.ToMe) -> tuple[Tensor, tr.Reduction]:
    tower: Any = encoder_tower(model)
    seen: list[Tensor] = []
    with tr.reduce(model, tome) as reduction:
        handle = tower.layers[-1].register_forward_hook(lambda _, __, y: seen.append(y))
        call(model, x)
        handle.remove()
    return seen[0], reduction  # type: ignore[return-value]


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_merge_written_by_hand(kind: str, prop_attn: bool) -> None:
    model = encoder(kind)
    if prop_attn and not merging(model).prop_attn:
        with pytest.raises(ValueError, match="this tower's takes none; choose prop_attn=False"):
            tr.reduce(model, tr.ToMe(r=9))
        return
    tome = tr.ToMe(r=[9, 0, 20, 3], prop_attn=prop_attn)
    with torch.no_grad():
        ours, reduction = last(model, pictures(), tome)
        theirs = by_hand(kind, model, pictures(), tome)
        assert (ours - theirs).abs().max() < CLOSE * theirs.abs().max()
    tokens = reduction.report.tokens
    assert reduction.report.tokens_per_layer == [tokens - n for n in (9, 9, 29, 32)]
    assert reduction.size.sum(dim=1).tolist() == [tokens] * 3
    assert reduction.report.flops < reduction.report.flops_full
    assert sorted(reduction.plans) == [0, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_without_merges_it_is_the_plain_model_to_the_bit(kind: str) -> None:
    model, x = encoder(kind), pictures()
    with torch.no_grad():
        plain = call(model, x)
        with tr.reduce(model, merging(model, r=0)) as reduction:
            assert torch.equal(call(model, x), plain)
        assert not reduction.report.applied
        assert reduction.report.flops == reduction.report.flops_full


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was(kind: str) -> None:
    model, x = encoder(kind), pictures()
    before = state(model)
    with torch.no_grad():
        plain = call(model, x)
        given = x.clone()
        with tr.reduce(model, merging(model)):
            first, second = call(model, x), call(model, x)
            copied = copy.deepcopy(model)
            assert torch.equal(call(copied, x), plain)
        assert torch.equal(first, second)
        assert not torch.equal(first, plain)
        assert torch.equal(call(model, x), plain)
    assert torch.equal(x, given)
    assert state(model) == before


def state(model: nn.Module) -> list[Any]:
    return [
        (name, sorted(part.__dict__), len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in model.named_modules()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_pictures_one_by_one(kind: str) -> None:
    model, x = encoder(kind), pictures(4)
    with torch.no_grad(), tr.reduce(model, merging(model, r=12)):
        together = call(model, x)
        alone = torch.cat([call(model, one[None]) for one in x])
    assert (together - alone).abs().max() < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    model, x = encoder(kind), pictures()

    def backward() -> None:
        with tr.reduce(model, merging(model, r=12)):
            call(model.train(), x).square().mean().backward()

    if kind.startswith("timm"):
        turn_on: Any = type(model).set_grad_checkpointing
        checkpointing_changes_no_gradient(model, backward, "0", CLOSE, turn_on)
    else:
        checkpointing_changes_no_gradient(model, backward, "0", CLOSE)


def test_reentrant_checkpointing_is_refused_with_the_way_out() -> None:
    model: Any = encoder("vit").train()
    checkpoint_activations(model, reentrant=True)
    x = pictures().requires_grad_()
    with tr.reduce(model, merging(model)), pytest.raises(RuntimeError, match="use_reentrant=False"):
        model(pixel_values=x).logits.sum().backward()


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit"])
def test_eager_attention_says_the_same(kind: str) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        with torch.no_grad():
            model = encoder(kind, attention=attention)
            found.append(last(model, pictures(), merging(model, r=10))[0])
    assert (found[0] - found[1]).abs().max() < CLOSE * found[1].abs().max()


def test_hidden_states_are_those_of_the_shorter_layers() -> None:
    model: Any = encoder("clip")
    model(pixel_values=pictures(), output_hidden_states=True)  # whoever records came first
    with torch.no_grad(), tr.reduce(model, merging(model, r=10)) as reduction:
        out = model(pixel_values=pictures(), output_hidden_states=True)
    assert [h.shape[1] for h in out.hidden_states] == [65, 55, 45, 35, 25]
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert reduction.group.shape == (3, 65)


def test_a_scheduler_counts_shares_of_the_patches() -> None:
    model = encoder("clip")
    schedule = tr.Explicit(layers=(1, 2), keeps=(0.5, 0.125))
    with torch.no_grad(), tr.reduce(model, merging(model), schedule) as reduction:
        call(model, pictures())
    assert reduction.report.tokens_per_layer == [65, 33, 9, 9]


def test_two_threads_do_not_disturb_each_other() -> None:
    model, xs = encoder("vit"), [pictures(2, seed) for seed in range(4)]
    with torch.no_grad(), tr.reduce(model, merging(model, r=7)):
        alone, found = [call(model, x) for x in xs], {}

        def work(i: int) -> None:
            with torch.no_grad():
                for _ in range(3):
                    found[i] = call(model, xs[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all((found[i] - alone[i]).abs().max() < CLOSE for i in range(4))


def test_what_cannot_be_is_refused() -> None:
    model = encoder("vit")
    with pytest.raises(TypeError, match="FastV reduces at the input of decoder layers"):
        tr.reduce(model, "fastv")
    with pytest.raises(ValueError, match="outside a decoder of 4"):
        tr.reduce(model, merging(model), tr.Single(layer=9))
    with pytest.raises(
        ValueError, match="positions, logits and min_tokens are of a language model"
    ):
        tr.reduce(model, merging(model), positions="keep")
    with tr.reduce(model, merging(model)) as reduction:
        with pytest.raises(RuntimeError, match="no picture has passed"):
            _ = reduction.report
        with pytest.raises(ValueError, match="already reduced"):
            tr.reduce(model, merging(model))
        call(model, pictures())
    with pytest.warns(tr.ReductionWarning, match="without having reduced"):
        tr.reduce(model, merging(model)).remove()
    model.config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="prop_attn=False"):
        tr.reduce(model, "tome")


def test_a_layer_that_raises_leaves_nothing_behind() -> None:
    model: Any = encoder("vit")

    def fail(*_: Any) -> None:
        raise OSError("on purpose")

    with torch.no_grad(), tr.reduce(model, merging(model)):
        expected = call(model, pictures())
        tower: Any = encoder_tower(model)
        handle = tower.layers[2].layernorm_after.register_forward_hook(fail)
        with pytest.raises(OSError, match="on purpose"):
            call(model, pictures())
        handle.remove()
        assert torch.equal(call(model, pictures()), expected)


@pytest.mark.parametrize("r", [-1, [1, -2], 2.5, "8", [[1]]])
def test_a_wrong_r_is_refused(r: Any) -> None:
    with pytest.raises(ValueError, match=r"r must be|each of r"):
        tr.ToMe(r=r)


def test_a_wrong_inflection_is_refused() -> None:
    with pytest.raises(ValueError, match="between -1 and 1"):
        tr.ToMe(inflect=2)
    with pytest.raises(ValueError, match="changes one number"):
        tr.ToMe(r=[1], inflect=0.5)
