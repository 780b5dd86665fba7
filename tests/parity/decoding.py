"""Greedy generation on a recorded prompt, with a cache and without one.

Shapes: t steps, e head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tokenreduce.engine.call import cache_of

from .cases import IGNORED, Case, Kept
from .compare import gap, places, unequal
from .outcome import arrangement, kept, reduced, watched


@dataclass(frozen=True)
class Recorded:
    """One recorded generation: tokens, logits (t, vocabulary), kept sets and scores per step.

    The last two were recorded where every step ranks anew.
    """

    tokens: list[int]
    logits: Tensor
    cache: bool
    kept: list[Kept]
    scores: list[Tensor]


def recordings(case: Case) -> Iterator[Recorded]:
    """The generations of a case; an original may have been recorded with and without its cache."""
    tensors, layer = case.tensors, min(case.kept)
    every = case.settings.get("prunes_per_step", case.settings.get("prunes_nocache", []))
    per_step = [{layer: [entry["kept_of_original"]]} for entry in every]
    for name, tokens in tensors.items():
        head, _, kind = name.rpartition(".")
        head = f"{head}." if head else ""
        if kind == "generated":
            uncached = head == "nocache." or "without KV cache" in case["mode"]
            logits, cache = tensors[f"{head}step_scores"], not uncached
        elif kind == "generated_nocache":
            logits, cache = tensors["step_scores_nocache"], False
        else:
            continue
        scores = [tensors.get(f"{head}step{t}.scores") for t in range(len(per_step))]
        ranked = ([], []) if cache else (per_step, scores)
        yield Recorded(tokens.tolist(), logits, cache, *ranked)


@dataclass
class Decoded:
    """What happened, step by step: token, logits, kept sets, cache lengths, rotary tables."""

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    cached: list[list[int]] = field(default_factory=list)
    rotary: list[list[Tensor]] = field(default_factory=list)

    def note(self, logits: Tensor) -> None:
        self.logits.append(logits.detach())
        self.tokens.append(int(logits.argmax()))


def generate(case: Case, model: LlamaForCausalLM, steps: int, **changes: Any) -> Decoded:
    """`model.generate` on the recorded prompt: ranked once, in the prefill."""
    decoded = Decoded()
    with reduced(case, model, **changes) as reduction, watched(case, model) as outcome:

        def note(module: Any, args: Any, output: Any) -> None:
            decoded.kept.append(kept(case, reduction))
            decoded.cached.append([x.keys.shape[2] for x in cache_of(output).layers])
            decoded.rotary.append([cos[0, -1] for cos, _ in outcome.rotary])
            outcome.rotary.clear()
            outcome.last = None  # the next step is another pass

        handle = model.register_forward_hook(note)
        try:
            with reduction.visual(case.visual):
                output = model.generate(
                    inputs_embeds=case.embeds(model).detach(),
                    attention_mask=torch.ones(1, case.length, dtype=torch.long),
                    max_new_tokens=steps,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                    pad_token_id=0,
                )
        finally:
            handle.remove()
    for logits in output.logits:
        decoded.note(logits[0])
    return decoded


@torch.no_grad()
def recompute(case: Case, model: LlamaForCausalLM, steps: int, **changes: Any) -> Decoded:
    """Greedy decoding that runs the whole sequence at every step, without a cache.

    FastV asks with the newest token at every step. PyramidDrop goes on asking with the prompt's
    last: the new tokens are marked as an answer by labels, and the token before an answer asks.
    """
    decoded, prompt, answers = Decoded(), case.embeds(model), case.method == "pyramiddrop"
    strategy = changes.setdefault("strategy", arrangement(case)[0])
    with (
        reduced(case, model, **changes) as reduction,
        watched(case, model, strategy) as outcome,
    ):
        for step in range(steps):
            new = torch.tensor([decoded.tokens], dtype=torch.long)
            embeds = torch.cat([prompt, model.get_input_embeddings()(new)], dim=1)
            visual = torch.cat([case.visual, torch.zeros(1, step, dtype=torch.bool)], dim=1)
            labels = torch.cat([torch.full((1, case.length), IGNORED), new], dim=1)
            marked = {"labels": labels} if answers and step else {}
            with reduction.visual(visual):
                output = model(inputs_embeds=embeds, use_cache=False, **marked)
            decoded.kept.append(kept(case, reduction))
            decoded.scores += [outcome.scores[min(case.kept)][0]] if outcome.scores else []
            decoded.note(output.logits[0, -1])
    return decoded


def decode(case: Case, model: LlamaForCausalLM, recorded: Recorded) -> Decoded:
    """This engine's counterpart of a recorded generation."""
    return (generate if recorded.cache else recompute)(case, model, len(recorded.tokens))


def step_differences(
    case: Case, model: LlamaForCausalLM, recorded: Recorded, decoded: Decoded
) -> dict[str, float]:
    """The largest difference of each kind over the steps of a generation."""
    found = {
        "tokens": float(sum(a != b for a, b in zip(recorded.tokens, decoded.tokens, strict=False)))
        + abs(len(recorded.tokens) - len(decoded.tokens)),
        "steps": gap(torch.stack(decoded.logits), recorded.logits),
        "kept": sum(unequal(a, b) for a, b in zip(recorded.kept, decoded.kept, strict=False)),
    }
    for ours, theirs in zip(decoded.scores, recorded.scores, strict=False):
        found["scores"] = max(found.get("scores", 0.0), gap(ours, theirs))
    _, _, rule = arrangement(case)
    for step, (lengths, tables) in enumerate(zip(decoded.cached, decoded.rotary, strict=True)):
        for layer, (length, table) in enumerate(zip(lengths, tables, strict=True)):
            at = places(case, layer, 0, rule)[-1] + step
            cos, _ = model.model.rotary_emb(table, torch.tensor([[at]]))
            found["positions"] = max(found.get("positions", 0.0), gap(table, cos[0, 0]))
            wrong = abs(length - case.hidden_length(layer) - step)
            found["lengths"] = max(found.get("lengths", 0.0), float(wrong))
    return found
