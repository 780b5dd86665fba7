"""What the originals cannot do, held to what they did one prompt at a time.

PyramidDrop's code raises on left padding and decodes wrongly in batches; the rows of such a batch
must nevertheless be the recorded ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from .cases import GOLDEN, Case
from .compare import TOLERANCE, gap
from .decoding import recordings
from .outcome import kept, reduced

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
