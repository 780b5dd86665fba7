"""What holds where tokens are merged inside a tower that gets all pictures as one sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tests.gradients import checkpointing_changes_no_gradient
from tokenreduce.engine.hooks import bind, parameters
from tokenreduce.testing import model_laws, state_laws
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.trial import Stops, Trial

CLOSE = 2e-5
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
PIXTRAL = ("llava-pixtral", "mistral3")
VIDEO = ("qwen2_5_vl-video", "qwen2_vl-mixed", "qwen3_vl-video", "glm4v-video")


def trial(family: str, **options: Any) -> Trial:
    options = {"r": 3, "tower": "expanded", "prop_attn": False, **options}
    return Trial(tr.ToMe(**options), Stops(()), FAMILIES[family])


def parts(model: Any) -> tuple[Any, list[Any]]:
    """The tower's layers, and the modules behind them that must get every patch."""
    if hasattr(model.model, "visual"):
        tower = model.model.visual
        behind = [*getattr(tower, "deepstack_merger_list", ())]
        behind.append(getattr(tower, "post_layernorm", tower.merger))
        return tower.blocks, behind
    return model.model.vision_tower.transformer.layers, [model.model.multi_modal_projector]


def recorded(modules: Any, run: Any) -> list[list[dict[str, Any]]]:
    """The arguments of every call of each module, by name, while `run` runs."""
    calls: list[list[dict[str, Any]]] = [[] for _ in modules]

    def note(i: int, names: tuple[str, ...]) -> Any:
        return lambda _, args, kwargs: calls[i].append(bind(names, args, kwargs))

    handles = [
        m.register_forward_pre_hook(note(i, parameters(m)), with_kwargs=True)
        for i, m in enumerate(modules)
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return calls


def blocks_of(call: dict[str, Any]) -> list[int]:
    """Cumulated lengths of what a layer's attention keeps apart."""
    if "cu_seqlens" in call:
        return call["cu_seqlens"].tolist()  # type: ignore[no-any-return]
    seen = (call["attention_mask"][0, 0] >= 0).tolist()
    return [i for i, row in enumerate(seen) if not i or row != seen[i - 1]] + [len(seen)]


def attend(layer: Any, call: dict[str, Any], h: list[Tensor], at: list[int], sizes: Any) -> Any:
    """Hidden states behind the attention, and keys, of tokens that see each other.

    Args:
        at: places of the tokens in the whole sequence, for their rotary tables.
        sizes: how many patches each stands for, where attention is proportional to that.
    """
    cos, sin = (table.view(-1, table.shape[-1])[at] for table in call["position_embeddings"])
    x = torch.stack(h)
    if hasattr(layer, "norm1"):
        y = layer.norm1(x)
        ends = torch.tensor([0, len(at)], dtype=torch.int32)
        out = layer.attn(y, cu_seqlens=ends, position_embeddings=(cos, sin))
        return x + out, layer.attn.qkv(y)[:, y.shape[-1] : 2 * y.shape[-1]]
    y = layer.attention_norm(x)[None]
    mask = torch.zeros(1, 1, len(at), len(at))
    mask = mask if sizes is None else mask + torch.tensor(sizes).log()
    out = layer.attention(y, attention_mask=mask, position_embeddings=(cos, sin))[0]
    return x + out[0], layer.attention.k_proj(y)[0]


def by_hand(
    layers: Any, calls: list[list[dict[str, Any]]], heads: int, tome: tr.ToMe
) -> list[Tensor]:
    """(P, d) behind every layer, each patch as its group became; token by token, in lists."""
    x = calls[0][0]["hidden_states"]
    x = x.view(-1, x.shape[-1])
    pixtral = "attention_mask" in calls[0][0]
    ends = blocks_of(calls[0][0])
    home = {i: b for b in range(len(ends) - 1) for i in range(ends[b], ends[b + 1])}
    tokens = {i: (x[i], [i]) for i in range(len(x))}  # by the place that stands for it
    outputs = []
    for number, layer in enumerate(layers):
        call, bounds = calls[number][0], blocks_of(calls[number][0])
        after: dict[int, Tensor] = {}
        keys: dict[int, Tensor] = {}
        for start, end in pairwise(bounds):
            at = [i for i in sorted(tokens) if start <= i < end]
            sizes = [float(len(tokens[i][1])) for i in at] if tome.prop_attn else None
            h, k = attend(layer, call, [tokens[i][0] for i in at], at, sizes)
            after |= dict(zip(at, h, strict=True))
            keys |= dict(zip(at, k.view(len(at), heads, -1).mean(dim=1), strict=True))
        groups = {i: (tokens[i][1], after[i] * len(tokens[i][1])) for i in tokens}
        for b in range(len(ends) - 1):
            at = [i for i in sorted(tokens) if home[i] == b]
            key = {i: torch.nn.functional.normalize(keys[i], dim=0) for i in at}
            best = [
                (*max((float(key[i] @ key[j]), j) for j in at[1::2]), i) for i in at[::2] if at[1:]
            ]
            best.sort(reverse=True)
            for _, j, i in best[: min(tome.merges(len(layers))[number], len(at) // 2)]:
                members, total = groups.pop(i)
                groups[j] = (groups[j][0] + members, groups[j][1] + total)
        norm, mlp = (layer.ffn_norm, layer.feed_forward) if pixtral else (layer.norm2, layer.mlp)
        tokens = {}
        for i, (members, total) in groups.items():
            mean = total / len(members)
            tokens[i] = (mean + mlp(norm(mean[None]))[0], members)
        whole = torch.empty_like(x)
        for row, members in tokens.values():
            whole[members] = row
        outputs.append(whole)
    return outputs


def heads_of(model: Any) -> int:
    config = model.config.vision_config
    return int(getattr(config, "num_heads", 0) or config.num_attention_heads)


@pytest.mark.parametrize("family", [*QWEN, *VIDEO])
def test_every_reader_gets_what_is_merged_by_hand(family: str) -> None:
    one = trial(family, r=[3, 2, 1, 1])
    model, batch = one.model, one.batch()
    layers, readers = parts(model)
    whole = recorded(layers, lambda: batch.run(model, use_cache=False))
    with one.reduce() as reduction:
        seen = recorded(readers, lambda: batch.run(model, use_cache=False))
        assert reduction.tower.plans
    with torch.no_grad():
        expected = by_hand(layers, whole, heads_of(model), one.strategy)
    chosen = getattr(model.config.vision_config, "deepstack_visual_indexes", [])
    wanted = [*(expected[i] for i in chosen), expected[-1]]
    for calls, x in zip(seen, wanted, strict=True):
        got = next(iter(calls[0].values()))
        assert (got - x).abs().max() < CLOSE * x.abs().max()


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("family", PIXTRAL)
def test_pixtrals_hidden_states_are_what_is_merged_by_hand(family: str, prop_attn: bool) -> None:
    one = trial(family, r=[3, 2], prop_attn=prop_attn)
    model, batch = one.model, one.batch()
    layers, _ = parts(model)
    whole = recorded(layers, lambda: batch.run(model, use_cache=False))
    states: list[Any] = []
    with one.reduce(), torch.no_grad():
        handle = model.model.vision_tower.register_forward_hook(
            lambda _, args, out: states.append(out.hidden_states)
        )
        batch.run(model, use_cache=False)
        handle.remove()
    with torch.no_grad():
        expected = by_hand(layers, whole, heads_of(model), one.strategy)
    kept = [(got, x) for got, x in zip(states[-1][1:], expected, strict=True) if got is not None]
    assert kept
    for got, x in kept:
        assert (got[0] - x).abs().max() < CLOSE * x.abs().max()


@pytest.mark.parametrize("family", [*QWEN, *PIXTRAL, "internvl"])
def test_layers_run_on_fewer_tokens(family: str) -> None:
    one, ran = trial(family), []
    tower = one.reduce()
    layers = tower.tower.tower.layers
    handles = [
        tower.tower.tower.mlp(layer)[1].register_forward_pre_hook(
            lambda _, args: ran.append(args[0].shape[:-1].numel())
        )
        for layer in layers
    ]
    with torch.no_grad(), tower as reduction:
        one.batch().run(one.model, use_cache=False)
        report = reduction.tower.report
        assert ran == [report.pictures * n for n in report.tokens_per_layer]
        assert sorted(ran, reverse=True) == ran
        assert ran[-1] < report.pictures * report.tokens
        assert report.flops < report.flops_full
        assert "vision tower" in str(reduction.report)
    for handle in handles:
        handle.remove()


def test_windows_save_attention_as_counted() -> None:
    """The report's products of queries and keys are those of the cumulated lengths."""
    one = trial("qwen2_5_vl")
    layers, _ = parts(one.model)
    whole = recorded(layers, lambda: one.batch().run(one.model, use_cache=False))
    with one.reduce() as reduction:
        short = recorded(layers, lambda: one.batch().run(one.model, use_cache=False))
        del short  # what the hooks of the reduction change is seen inside the layer only
        attentions = recorded(
            [layer.attn for layer in layers], lambda: one.batch().run(one.model, use_cache=False)
        )
        merged = reduction.tower._passed()
        for i in range(len(layers)):
            pairs = [
                sum(n * n for n in call[i][0]["cu_seqlens"].diff().tolist())
                for call in (attentions, whole)
            ]
            assert merged.pairs(i) == tuple(pairs)


@pytest.mark.parametrize("family", [*QWEN, *VIDEO, *PIXTRAL, "internvl"])
def test_without_merges_it_is_the_plain_model_to_the_bit(family: str) -> None:
    one = trial(family)
    plain = one.plain()
    with torch.no_grad():
        with tr.reduce(one.model, tr.ToMe(r=0, tower="expanded", prop_attn=False)):
            assert torch.equal(one.batch().run(one.model, use_cache=False).logits, plain)
        with one.reduce():
            assert not torch.equal(one.batch().run(one.model, use_cache=False).logits, plain)
        assert torch.equal(one.batch().run(one.model, use_cache=False).logits, plain)


@pytest.mark.parametrize("family", [*QWEN, "qwen3_vl-video", *PIXTRAL, "internvl"])
def test_laws_hold(family: str) -> None:
    one = trial(family)
    model_laws.rows_stand_alone(one)
    model_laws.decoding_stores_what_is_left(one)
    state_laws.text_logits_give_the_same_loss(one)
    state_laws.answers_change_no_choice(one)
    state_laws.the_model_is_left_as_it_was(one)
    state_laws.generations_do_not_disturb_each_other(one)


def test_pixtrals_groups_come_once() -> None:
    one = trial("llava-pixtral", tower="merged", prop_attn=True)
    one.scheduler = one.strategy.scheduler()
    model_laws.rows_stand_alone(one)
    state_laws.text_logits_give_the_same_loss(one)
    with torch.no_grad(), one.reduce() as reduction:
        one.batch().run(one.model, use_cache=False)
        sizes = reduction.tower._passed().blocks
        pictures = [len(p) for sample in reduction.pictures for p in sample]
    assert list(sizes[0]) == pictures
    assert sum(reduction.report.stops[0]["kept"]) == sum(sizes[-1])


def test_a_picture_of_few_patches_keeps_half_of_them() -> None:
    one = trial("qwen3_vl", r=1000)
    with torch.no_grad(), one.reduce() as reduction:
        one.batch().run(one.model, use_cache=False)
        blocks = reduction.tower._passed().blocks
    for before, behind in pairwise(blocks):
        assert behind == tuple(n - n // 2 for n in before)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_training_with_checkpointing_gives_the_same_gradients(family: str) -> None:
    one = trial(family)
    model, batch = one.family.model().train(), one.batch()

    def backward() -> None:
        with one.reduce(model=model):
            batch.run(model, labels=batch.labels, use_cache=False).loss.backward()

    checkpointing_changes_no_gradient(model, backward, "visual", CLOSE)


def test_what_cannot_be_is_refused_and_nothing_stays_behind() -> None:
    model = FAMILIES["qwen2_5_vl"].model()
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    with pytest.raises(ValueError, match="this tower's takes none; choose prop_attn=False"):
        tr.reduce(model, tr.ToMe(tower="expanded"))
    with pytest.raises(ValueError, match="knows expanded; tower=None"):
        tr.reduce(model, tr.ToMe(tower="merged", prop_attn=False))
    model.config.vision_config.fullatt_block_indexes = [0]
    with pytest.raises(ValueError, match="cannot merge in its tower; tower=None"):
        tr.reduce(model, tr.ToMe(tower="expanded", prop_attn=False))
    after = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    assert after == hooks
