"""This engine on a recorded case: one forward pass, and what every layer was given.

Shapes: b samples, l sequence, m rows inside a reduced layer, n rows of one sample, d width. Inside
a reduced layer the rows of a ragged batch stand at the right, filler before them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import LlamaForCausalLM

import tokenreduce as tr
from tokenreduce.report import Report

from .cases import Case, Kept


@dataclass
class Outcome:
    """What happened in one forward pass of this engine."""

    case: Case
    kept: Kept = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    hidden: list[Tensor] = field(default_factory=list)
    rotary: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    last: Tensor | None = None
    output: Any = None
    report: Report | None = None

    def rows(self, x: Tensor, layer: int, sample: int) -> Tensor:
        """(n, …) the real rows of `sample` in `x` (b, m, …), as they stand at `layer`."""
        alive = self.case.survivors(layer, sample)
        if x.shape[1] == self.case.length:
            return x[sample, alive]
        return x[sample, x.shape[1] - len(alive) :]


def arrangement(case: Case) -> tuple[tr.Strategy, tr.Scheduler, str]:
    """The strategy, scheduler and position rule that the recorded run was set to."""
    if case.method == "pyramiddrop":
        layers, keeps = case["layer_list"], case["image_token_ratio_list"]
        return tr.PyramidDrop(), tr.Explicit(layers, keeps, rounding="floor"), "compact"
    if case.method == "vtw":
        return tr.VTW(), tr.Single(case["k"], 0.0), case["pe_type"]
    if "R" in case.settings:
        return tr.FastV(), tr.Single(case["K"], 1 - case["R"]), "keep"
    if "ratio_kept" in case.settings:
        return tr.FastV(), tr.Single(case["K"], case["ratio_kept"], rounding="floor"), "keep"
    share = case["keep"] / case["image_token_length"]
    return tr.FastV(), tr.Single(case["K"], share), "keep"


@contextmanager
def reduced(case: Case, model: LlamaForCausalLM, **changes: Any) -> Iterator[Any]:
    """`model` under the recorded arrangement; `changes` replace parts of it."""
    strategy, scheduler, positions = arrangement(case)
    given = {"strategy": strategy, "scheduler": scheduler, "positions": positions} | changes
    with warnings.catch_warnings():
        if not case.visual.any():  # the reduction says that it had nothing to do
            warnings.simplefilter("ignore", tr.ReductionWarning)
        with tr.reduce(
            model, given["strategy"], given["scheduler"], positions=given["positions"]
        ) as reduction:
            yield reduction


@contextmanager
def watched(case: Case, model: LlamaForCausalLM, strategy: Any = None) -> Iterator[Outcome]:
    """Notes what the layers of `model` are given; entered after `tr.reduce`: behind its hooks."""
    outcome, handles = Outcome(case), []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if outcome.last is not None:
            return  # checkpointing runs the layers again
        outcome.hidden.append((args[0] if args else kwargs["hidden_states"]).detach())
        outcome.rotary.append(kwargs["position_embeddings"])

    def note_last(module: Any, args: tuple[Tensor, ...]) -> None:
        outcome.last = args[0].detach()

    for layer in model.model.layers:
        handles.append(layer.register_forward_pre_hook(note, with_kwargs=True))
    handles.append(model.lm_head.register_forward_pre_hook(note_last))
    if strategy is not None:
        _note_scores(strategy, outcome)
    try:
        yield outcome
    finally:
        for handle in handles:
            handle.remove()


def _note_scores(strategy: tr.Strategy, outcome: Outcome) -> None:
    """Notes what `strategy` ranks by: its scores, or the mean over heads of its evidence."""
    decide = strategy.plan

    def noted(tokens: tr.Tokens, budget: Sequence[int]) -> tr.Plan:
        if isinstance(strategy, tr.Scorer):
            scores = strategy.score(tokens)
        else:
            (name,) = strategy.needs
            scores = tokens[name].mean(dim=1)
        outcome.scores[tokens.layer] = scores.detach()
        return decide(tokens, budget)

    object.__setattr__(strategy, "plan", noted)


def run(case: Case, model: LlamaForCausalLM, **options: Any) -> Outcome:
    """One forward pass of the reduced `model` over the recorded inputs.

    Options: parts of the arrangement (`strategy`, `scheduler`, `positions`), and arguments of the
    model (`inputs_embeds`, `labels`, `use_cache`). `backward` also takes the gradient of the loss,
    inside the reduction, where checkpointing runs the layers again.
    """
    backward = options.pop("backward", False)
    changes = {k: options.pop(k) for k in ("strategy", "scheduler", "positions") if k in options}
    changes.setdefault("strategy", arrangement(case)[0])
    options.setdefault("inputs_embeds", case.embeds(model))
    options.setdefault("use_cache", not model.training)
    with (
        reduced(case, model, **changes) as reduction,
        watched(case, model, changes["strategy"]) as outcome,
        reduction.visual(case.visual),
    ):
        outcome.output = model(attention_mask=case.mask, **options)
        outcome.kept = kept(case, reduction)
        if backward:
            outcome.output.loss.backward()
        outcome.report = reduction.report if case.visual.any() else None
    return outcome


def kept(case: Case, reduction: Any) -> Kept:
    """`reduction.kept` as lists; nothing at any stop where there is nothing visual."""
    if not case.visual.any():
        return {layer: [[] for _ in case.lengths] for layer in case.kept}
    return {layer: [x.tolist() for x in rows] for layer, rows in reduction.kept.items()}
