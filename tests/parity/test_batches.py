"""What the originals cannot do, held to what they did one prompt and one token at a time.

PyramidDrop's code raises on left padding, decodes wrongly in batches, and takes several new tokens
over a filled cache for a prompt; the results must nevertheless be the recorded ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import tokenreduce as tr

from .cases import GOLDEN, Case
from .compare import TOLERANCE, gap, gradient_gap
from .decoding import recordings
from .outcome import arrangement, kept, reduced

ATTENTIONS = ("sdpa", "eager")


def row(case: Case, model: LlamaForCausalLM, sample: int) -> tuple[Tensor, Tensor]:
    """(l, d) inputs and (l,) visual mask of one sample, without padding."""
    length = case.lengths[sample]
    return case.embeds(model).detach()[sample, :length], case.visual[sample, :length]


def left_padded(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """(b, l, d) inputs, (b, l) visual mask and (b, l) attention mask, padded on the left."""
    longest = max(len(x) for x, _ in rows)
    pads = [longest - len(x) for x, _ in rows]
    embeds = [
        torch.cat([x.new_zeros(n, x.shape[1]), x]) for n, (x, _) in zip(pads, rows, strict=True)
    ]
    visual = [torch.cat([v.new_zeros(n), v]) for n, (_, v) in zip(pads, rows, strict=True)]
    mask = torch.arange(longest) >= torch.tensor(pads)[:, None]
    return torch.stack(embeds), torch.stack(visual), mask.long()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_left_padding_gives_the_rows_recorded_with_right_padding(attention: str) -> None:
    case = Case(GOLDEN / "pyramiddrop/batch3_padded")
    model = case.model(attention)
    samples = range(len(case.lengths))
    embeds, visual, mask = left_padded([row(case, model, i) for i in samples])
    ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad(), reduced(case, model) as reduction, reduction.visual(visual):
        output = model(inputs_embeds=embeds, attention_mask=mask, position_ids=ids)
        assert kept(case, reduction) == case.kept
    for i in samples:
        at, theirs = case.logits(i)
        ours = output.logits[i, [case.length - case.lengths[i] + j for j in at]]
        assert gap(ours, theirs) <= TOLERANCE["logits"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("turn", [1, -1])
def test_a_padded_batch_generates_the_texts_recorded_one_by_one(attention: str, turn: int) -> None:
    cases = [Case(GOLDEN / f"pyramiddrop/generate_{x}") for x in ("n37", "text_only")][::turn]
    model, pictured = cases[0].model(attention), cases[::turn][0]
    embeds, visual, mask = left_padded([row(case, model, 0) for case in cases])
    recorded = [next(recordings(case)) for case in cases]
    with reduced(pictured, model) as reduction, reduction.visual(visual):
        output = model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=len(recorded[0].tokens),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        ours = kept(pictured, reduction)
    steps = torch.stack(output.logits, dim=1)
    for i, (case, theirs) in enumerate(zip(cases, recorded, strict=True)):
        assert output.sequences[i].tolist() == theirs.tokens
        assert gap(steps[i], theirs.logits) <= TOLERANCE["steps"]
        assert [ours[layer][i] for layer in case.kept] == [rows[0] for rows in case.kept.values()]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["pyramiddrop/generate_n37", "fastv/hf_generate_n37_k2_r50"])
def test_several_tokens_at_once_continue_as_recorded_one_by_one(name: str, attention: str) -> None:
    case = Case(GOLDEN / name)
    model, theirs = case.model(attention), next(x for x in recordings(case) if x.cache)
    with torch.no_grad(), reduced(case, model) as reduction:
        with reduction.visual(case.visual):
            output = model(inputs_embeds=case.embeds(model), use_cache=True)
        found, cache = [output.logits[0, -1:]], tr.cache_of(output)
        for turn in (theirs.tokens[:5], theirs.tokens[5:6], theirs.tokens[6:-1]):
            output = model(input_ids=torch.tensor([turn]), **tr.with_cache(model, cache))
            found.append(output.logits[0])
        assert kept(case, reduction) == case.kept
    assert gap(torch.cat(found), theirs.logits) <= TOLERANCE["steps"]


@pytest.mark.parametrize("name", ["train_two_turns", "train_batch3_padded"])
def test_logits_for_text_alone_give_the_recorded_loss_and_gradients(name: str) -> None:
    case = Case(GOLDEN / "pyramiddrop" / name)
    model = case.model().train()
    strategy, scheduler, positions = arrangement(case)
    with (
        tr.reduce(model, strategy, scheduler, positions=positions, logits="text") as reduction,
        reduction.visual(case.visual),
    ):
        embeds = case.embeds(model)
        output = model(inputs_embeds=embeds, attention_mask=case.mask, labels=case.labels)
    output.loss.backward()
    assert output.logits.shape[1] < case.length
    assert gap(output.loss, case.tensors["loss"]) <= TOLERANCE["loss"]
    for weight, theirs in case.tensors.items():
        if weight.startswith("grad.") and "image_features" not in weight:
            ours = model.get_parameter(weight.removeprefix("grad.")).grad
            assert gradient_gap(ours, theirs) <= TOLERANCE["gradients"]
