"""How far this engine is from what an original implementation did, and how far it may be.

Shapes: b samples, m rows inside a layer, n rows of one sample, d width, e head width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tokenreduce.engine.call import cache_of

from .cases import Case, Kept
from .outcome import Outcome, arrangement

INFINITE = float("inf")
Differences = Iterator[tuple[str, float]]

TOLERANCE = {
    "kept": 0.0,  # samples whose kept set differs, over all stops
    "lengths": 0.0,  # rows too many or too few in a layer or in its cache
    "reported": 0.0,  # wrong numbers in `reduction.report`
    "scores": 1e-5,
    "positions": 1e-5,  # of the rotary tables
    "hidden": 1e-4,
    "logits": 1e-4,
    "keys": 1e-4,
    "values": 1e-4,
    "loss": 1e-5,
    "gradients": 1e-4,  # relative to the largest entry
    "tokens": 0.0,
    "steps": 1e-4,
}


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; infinite where the shapes differ or a number is missing."""
    if ours.shape != theirs.shape:
        return INFINITE
    worst = (ours.detach() - theirs).abs().max().item() if ours.numel() else 0.0
    return worst if worst == worst else INFINITE


def differences(case: Case, outcome: Outcome, model: LlamaForCausalLM) -> dict[str, float]:
    """The largest difference of each kind between `outcome` and the recording."""
    found: dict[str, float] = {"kept": unequal(case.kept, outcome.kept)}
    parts = (
        scores(case, outcome),
        layers(case, outcome, model),
        results(case, outcome),
        cached(case, outcome),
        reported(case, outcome),
    )
    for part in parts:
        for kind, value in part:
            found[kind] = max(found.get(kind, 0.0), value)
    return found


def scores(case: Case, outcome: Outcome) -> Differences:
    """The scores of every ranking, over the visual tokens still there."""
    for layer, sample, theirs in case.scores():
        ours = outcome.scores.get(layer)
        yield "scores", INFINITE if ours is None else gap(ours[sample, : len(theirs)], theirs)


def layers(case: Case, outcome: Outcome, model: LlamaForCausalLM) -> Differences:
    """What every layer is given: how many rows, at which positions, with which contents."""
    _, _, rule = arrangement(case)
    for layer, (x, tables) in enumerate(zip(outcome.hidden, outcome.rotary, strict=True)):
        yield "lengths", abs(x.shape[1] - case.hidden_length(layer))
        for sample in range(x.shape[0]):
            theirs = case.hidden(layer, sample)
            if theirs is not None:
                yield "hidden", gap(outcome.rows(x, layer, sample), theirs)
            at = torch.tensor([places(case, layer, sample, rule)])
            for ours, table in zip(tables, model.model.rotary_emb(x, at), strict=True):
                ours = ours.expand(x.shape[0], *ours.shape[1:])
                yield "positions", gap(outcome.rows(ours, layer, sample), table[0])


def results(case: Case, outcome: Outcome) -> Differences:
    """The last hidden states and the logits, where the original has them, and the loss."""
    depth = len(outcome.hidden)
    for sample in range(len(case.lengths)):
        last = case.hidden(depth, sample)
        if last is not None:
            yield "hidden", gap(outcome.last[sample, case.survivors(depth, sample)], last)
        if (recorded := case.logits(sample)) is not None:
            at, theirs = recorded
            yield "logits", gap(outcome.output.logits[sample, at], theirs)
    if outcome.output.loss is not None:
        yield "loss", gap(outcome.output.loss, case.tensors["loss"])


def cached(case: Case, outcome: Outcome) -> Differences:
    """Lengths of the cache's layers, and their contents (keys are rotated) where recorded."""
    cache = cache_of(outcome.output)
    for i, layer in enumerate(cache.layers if cache is not None else ()):
        yield "lengths", abs(layer.keys.shape[2] - case.hidden_length(i))
        for kind in ("key", "value"):
            theirs = case.tensors.get(f"prefill_cache.{i}.{kind}")
            if theirs is not None:
                yield f"{kind}s", gap(getattr(layer, f"{kind}s"), theirs)


def reported(case: Case, outcome: Outcome) -> Differences:
    """The report's tokens of every layer and sample, and its cache bytes where rows are alike."""
    if outcome.report is None:
        return
    for layer, row in enumerate(outcome.report.tokens_per_layer):
        for sample, n in enumerate(row):
            yield "reported", abs(n - len(case.survivors(layer, sample)))
    cache = cache_of(outcome.output)
    if cache is not None and len(set(case.lengths)) == 1:
        held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
        yield "reported", abs(held - outcome.report.kv_bytes)


def unequal(theirs: Kept, ours: Kept) -> float:
    """How many kept sets differ; a stop that one side lacks counts once for each sample."""
    wrong = 0
    for layer in theirs.keys() | ours.keys():
        a, b = theirs.get(layer, []), ours.get(layer, [])
        wrong += abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
    return float(wrong)


def places(case: Case, layer: int, sample: int, rule: str) -> list[int]:
    """The positions that the rows of `sample` must have at `layer`."""
    alive = case.survivors(layer, sample)
    return list(range(len(alive))) if rule == "compact" and layer >= min(case.kept) else alive


def excess(found: dict[str, float]) -> dict[str, float]:
    """The differences that are larger than they may be."""
    return {kind: value for kind, value in found.items() if value > TOLERANCE[kind]}


def gradient_gap(ours: Tensor | None, theirs: Tensor) -> float:
    """The largest difference relative to the largest recorded entry; no gradient counts as zero."""
    ours = torch.zeros_like(theirs) if ours is None else ours
    return gap(ours, theirs) / (theirs.abs().max().item() or 1.0)
