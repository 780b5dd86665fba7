"""SparseVLM, against the recorded runs of Gumpest/SparseVLMs (versions 1 and 2).

Stage by stage on the original's own sequence, where merged tokens stand behind the kept ones, and
through `tr.reduce`, where a merged token stands in the place of its cluster's centre. Where the
weights are not at hand, the rows of attention that a stage reads are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import tokenreduce as tr
from tokenreduce.strategies.sparsevlm import clusters, text_raters
from tokenreduce.tower import rotate

from .choices import Choice, choices, own, tokens

CASES = choices("sparsevlm")


def weights(case: Choice) -> Path:
    """The folder of the recorded model, in this copy or beside further cases."""
    own = (case.folder / case.settings["weights"]).parent
    extra = Path(os.environ.get("TOKENREDUCE_GOLDEN", own)) / "_weights" / own.name
    return own if own.exists() else extra


def strays(theirs: Tensor, ours: Tensor) -> float:
    """How far the farthest row of `theirs` (n, d) is from its like among `ours` (m, d)."""
    return float((theirs[:, None] - ours).abs().amax(dim=2).amin(dim=1).max())


WHOLE = [case for case in CASES if (weights(case) / "model.safetensors").exists()]


def version(case: Choice) -> int:
    return int(case.settings["reference"]["version"][0])


@dataclass
class Recorded(tr.SparseVLM):
    """Splits a budget as it was recorded, where there are several ways to meet it."""

    split: tuple[int, int] = (0, 0)

    def numbers(self, n: int, k: int) -> tuple[int, int, int]:
        kept, merged = self.split
        assert kept + merged == k
        assert clusters(n - kept)[1] == merged
        return kept, clusters(n - kept)[0], merged


@dataclass
class Stage:
    """One recorded stage: what the strategy is given, and what the original did."""

    case: Choice
    number: int
    tokens: tr.Tokens

    @property
    def settings(self) -> dict[str, Any]:
        return self.case.settings["stages"][self.number]

    def tensor(self, name: str) -> Tensor:
        return self.case.tensors[f"stage{self.number}.{name}"]

    @property
    def split(self) -> tuple[int, int]:
        return self.settings["n_keep"], self.settings.get("n_merged", 0)

    def plan(self) -> tr.Plan:
        strategy = tr.SparseVLM(2) if version(self.case) == 2 else Recorded(1, split=self.split)
        return strategy.plan(self.tokens, [sum(self.split)])

    def merged(self, plan: tr.Plan) -> Tensor:
        """(m, d) what the merged tokens contain, in the original's order of the clusters."""
        chosen = self.settings["kept_of_current"]
        is_new = torch.tensor([i not in chosen for i in plan.keep[0].tolist()])
        found = plan.merge(self.tokens.hidden)[0, is_new]
        theirs = self.tensor("merged")[0]
        order = (theirs[:, None] - found).abs().amax(dim=2).argmin(dim=1)
        assert sorted(order.tolist()) == list(range(len(found)))
        return found[order]


def given(case: Choice, hidden: Tensor, attention: Tensor, rotation: Tensor) -> tr.Tokens:
    """The tokens of a stage; `attention` (h, t, v) are rows of the text, the last one included."""
    pre, n, post = (case.settings[name] for name in ("pre", "image_tokens", "post"))
    start = case.tensors["inputs_embeds"]
    text = torch.cat([torch.arange(pre), torch.arange(pre + n, pre + n + post)])
    return tokens(
        hidden,
        text_attention_before=attention[None],
        attention_before=attention[None, :, -1],
        text_rotation_before=rotation[None],
        text_behind=(text >= pre)[None],
        embedding=start[:, pre : pre + n],
        embedding_valid=torch.ones(1, n, dtype=torch.bool),
        text_embedding=start[:, text],
    )


@cache
def stages(case: Choice) -> list[Stage]:
    return list(replayed(case) if "stage0.rows" not in case.tensors else stored(case))


def stored(case: Choice) -> Iterator[Stage]:
    """From the raters' rows of attention; of the states, those that are merged."""
    raters = torch.tensor(case.settings["text_rater_idx_rel_to_text_start"])
    raters = raters + case.settings["pre"]
    texts = case.settings["pre"] + case.settings["post"]
    for number, stage in enumerate(case.settings["stages"]):
        found, v = case.tensors[f"stage{number}.rows"], stage["v_token_num_in"]
        rows = torch.zeros(len(found), texts, v)
        rows[:, raters] = found
        width = case.tensors["inputs_embeds"].shape[-1]
        hidden, rotation = torch.zeros(1, v, width), torch.ones(texts, v)
        if "n_merged" in stage:
            order = case.tensors[f"stage{number}.scores"].argsort(descending=True)
            best = order[stage["n_keep"] :][: stage["n_merge_in"]]
            hidden[:, best] = case.tensors[f"stage{number}.merge_in"]
        if (known := case.tensors.get(f"stage{number}.rotation")) is not None:
            rotation[raters] = known
        yield Stage(case, number, given(case, hidden, rows, rotation))


@torch.no_grad()
def replayed(case: Choice) -> Iterator[Stage]:
    """From the recorded weights: the plain layers, on the sequence that the original has."""
    model = LlamaForCausalLM.from_pretrained(weights(case), attn_implementation="eager").eval()
    pre, n = case.settings["pre"], case.settings["image_tokens"]
    x, compact = case.tensors["inputs_embeds"], version(case) == 1
    at, ends, number = torch.arange(x.shape[1]), pre + n, 0
    for i, layer in enumerate(model.model.layers):
        if (known := case.tensors.get(f"layer_in.{i}")) is not None:
            assert (x - known).abs().max() <= 1e-4
        tables = model.model.rotary_emb(x, at[None])
        mask = torch.full((len(at), len(at)), float("-inf")).triu(1)[None, None]
        seen: list[Tensor] = []
        handle = layer.self_attn.register_forward_hook(lambda *args: seen.append(args[-1][1]))  # noqa: B023
        x = layer(x, attention_mask=mask, position_embeddings=tables)
        handle.remove()
        if i not in case.settings["pruning_loc"]:
            continue
        text = torch.cat([torch.arange(pre), torch.arange(ends, len(at))])
        ones = rotate(torch.ones(1, 1, len(at), tables[0].shape[-1]), tables)[0, 0]
        rotation = ones[text] @ ones[pre:ends].T / ones.shape[-1] ** 0.5
        rows = seen[0][0][:, text][:, :, pre:ends]
        stage = Stage(case, number, given(case, x[:, pre:ends], rows, rotation))
        yield stage
        chosen = torch.tensor(stage.settings["kept_of_current"]) + pre
        new = stage.merged(stage.plan())[None] if stage.split[1] else x[:, :0]
        x = torch.cat([x[:, :pre], x[:, chosen], new, x[:, ends:]], dim=1)
        at = torch.cat([at[:pre], at[chosen], at[ends:]])
        at = torch.arange(x.shape[1]) if compact else at
        ends, number = pre + sum(stage.split), number + 1


def test_the_recorded_cases_are_here() -> None:
    assert {str(case) for case in CASES} >= own("sparsevlm")
    assert len(own("sparsevlm")) == 3
    assert {version(case) for case in CASES} == {1, 2}
    assert WHOLE
    assert any("stage0.rows" in case.tensors for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_recorded_texts_rate(case: Choice) -> None:
    raters, score = text_raters(stages(case)[0].tokens)
    start, recorded = case.settings["pre"], case.tensors["text_rater_scores"]
    assert raters[0].nonzero()[:, 0].tolist() == [
        i + start for i in case.settings["text_rater_idx_rel_to_text_start"]
    ]
    assert (score[0, start:] - recorded).abs().max() <= 1e-6


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_and_kept_tokens_are_the_recorded_ones(case: Choice) -> None:
    assert len(stages(case)) == len(case.settings["stages"]) == 3
    for stage in stages(case):
        score, plan = tr.SparseVLM(version(case)).score(stage.tokens)[0], stage.plan()
        assert (score - stage.tensor("scores")).abs().max() <= 1e-5 * max(1, score.abs().max())
        assert set(plan.keep[0].tolist()) >= set(stage.settings["kept_of_current"])
        assert plan.keep.shape[1] == sum(stage.split)
        assert plan.merges == (version(case) == 1)


@pytest.mark.parametrize("case", [case for case in CASES if version(case) == 1], ids=str)
def test_merged_tokens_are_the_recorded_ones(case: Choice) -> None:
    for stage in stages(case):
        plan, theirs = stage.plan(), stage.tensor("merged")[0]
        assert (stage.merged(plan) - theirs).abs().max() <= 1e-4
        assert plan.group is not None
        at = [i not in stage.settings["kept_of_current"] for i in plan.keep[0].tolist()]
        slots = torch.tensor(at).nonzero()[:, 0]
        into = torch.isin(plan.group[0], slots)
        assert int(into.sum()) == stage.settings["n_merge_in"]
        members = stage.tokens.hidden[0, into]
        recorded = stage.tensor("merge_in")[0]
        assert strays(recorded, members) <= 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if version(case) == 1], ids=str)
def test_a_budget_is_split_as_recorded(case: Choice) -> None:
    """Or in another way that the original's rule gives; of several, most are kept."""
    for stage in stages(case):
        n, (kept, merged) = stage.settings["v_token_num_in"], stage.split
        ours = tr.SparseVLM().numbers(n, kept + merged)
        assert ours[0] >= kept
        assert clusters(n - ours[0]) == ours[1:]


def test_the_schedules_leave_what_the_authors_list() -> None:
    for number, left in ((1, [309, 204, 113]), (2, [300, 200, 118])):
        stops = tr.SparseVLM(number).scheduler().stops(32)
        assert [stop.count(576) for stop in stops] == left
        assert [stop.layer for stop in stops] == [3, 7, 16]
    n, left = 576, []
    for keep in (300, 200, 110):
        left.append(keep + clusters(n - keep)[1])
        n = left[-1]
    assert left == [309, 204, 113]


# -- the whole model -------------------------------------------------------------------------------


def reduced(case: Choice, model: Any) -> Any:
    stages_, n = case.settings["stages"], case.settings["image_tokens"]
    left = [stage["n_keep"] + stage.get("n_merged", 0) for stage in stages_]
    layers = [layer + 1 for layer in case.settings["pruning_loc"]]
    return tr.reduce(model, tr.SparseVLM(version(case)), tr.Explicit(layers, [x / n for x in left]))


def shown(case: Choice) -> Tensor:
    pre, n = case.settings["pre"], case.settings["image_tokens"]
    at = torch.arange(case.tensors["inputs_embeds"].shape[1])
    return ((at >= pre) & (at < pre + n))[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", WHOLE, ids=str)
@torch.no_grad()
def test_a_whole_model_up_to_where_the_order_differs(case: Choice, attention: str) -> None:
    """Version 2 to the end; version 1 behind its first stage holds the same rows in another order.

    The merged tokens stand elsewhere there, and so get another rotation from the next layer on.
    """
    model = LlamaForCausalLM.from_pretrained(weights(case), attn_implementation=attention).eval()
    given: list[Tensor] = []
    t, stops = case.tensors, case.settings["stages"]
    with reduced(case, model) as reduction, reduction.visual(shown(case)):
        for layer in model.model.layers:
            layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        out = model(inputs_embeds=t["inputs_embeds"], use_cache=True)
        kept = reduction.kept
    held = [layer.keys.shape[2] for layer in tr.cache_of(out).layers]
    assert held == case.settings["kv_len_per_layer"]
    assert [x.shape[1] for x in given] == case.settings["layer_in_lengths"]
    assert reduction.positions == ("keep" if version(case) == 2 else "compact")
    first = kept[stops[0]["layer_idx"] + 1][0].tolist()
    assert set(first) >= set(stops[0]["kept_provenance"])
    if version(case) == 2:
        for stage in stops:
            assert kept[stage["layer_idx"] + 1][0].tolist() == stage["kept_provenance"]
        alive = [*range(case.settings["pre"]), *range(-case.settings["post"], 0)]
        theirs = t["logits"][0, alive]
        assert (out.logits[0, alive] - theirs).abs().max() <= 1e-4
    for i, ours in enumerate(given):
        theirs = t.get(f"layer_in.{i}")
        if theirs is not None and version(case) == 2:
            assert (ours - theirs).abs().max() <= 1e-4
        elif theirs is not None and i <= stops[0]["layer_idx"] + 1:
            assert strays(theirs[0], ours[0]) <= 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if version(case) == 2], ids=str)
def test_generation_is_the_recorded_one(case: Choice) -> None:
    if case not in WHOLE:
        pytest.skip("the weights are not in this copy: TOKENREDUCE_GOLDEN may name them")
    model = LlamaForCausalLM.from_pretrained(weights(case), attn_implementation="sdpa").eval()
    start, theirs = case.tensors["inputs_embeds"], case.tensors["step_scores"]
    with reduced(case, model) as reduction, reduction.visual(shown(case)), torch.no_grad():
        out = model.generate(
            inputs_embeds=start,
            attention_mask=torch.ones(1, start.shape[1], dtype=torch.long),
            max_new_tokens=len(theirs),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    assert out.sequences[0].tolist() == case.settings["generated"]
    assert (torch.cat(out.logits) - theirs).abs().max() <= 1e-4


def test_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 3"):
        tr.SparseVLM(3)  # type: ignore[arg-type]
