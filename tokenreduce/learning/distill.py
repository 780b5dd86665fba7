"""Teaches a learned scorer what deep layers attend to, from runs of the unreduced model.

Every run gives the scorer the hidden states at its stops, and the attention of a deeper layer as
the answer: what that layer will look at, said before it. (A small module that is distilled from the
attention of a language model is the region-focus module of arXiv 2503.07588, ICCV 2025.)

Shapes: b samples, v visual tokens, h heads, t text tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from tokenreduce.checks import one_of
from tokenreduce.errors import BadOption, Incompatible
from tokenreduce.learning.strategy import LearnedScorer
from tokenreduce.reduction import reduce
from tokenreduce.scheduler import Scheduler, Stop, layer_at
from tokenreduce.selection import candidates
from tokenreduce.strategy import Strategy
from tokenreduce.tokens import Plan, Tokens

TEACHERS = ("attention", "attention_before", "attention_received", "text_attention")
"""Evidence that can teach: one row of attention, the mean over all rows, or the text's."""

Batches = Iterable[Mapping[str, Any]]


def distill(
    model: nn.Module,
    strategy: LearnedScorer,
    batches: Batches,
    *,
    layer: int | float = 0.75,
    scheduler: Scheduler | None = None,
    steps: int | None = None,
    lr: float = 1e-3,
    teacher: str = "attention",
    optimizer: torch.optim.Optimizer | None = None,
    adapter: Any = None,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Trains a scorer to foretell what layer `layer` of the unreduced model attends to.

    The loss is the Kullback-Leibler divergence of the softmax of the scores from the attention,
    both over the visual tokens of a sample that are no separators. The model gets no gradient and
    runs in evaluation mode; its weights, and afterwards its mode, are as they were.

    Args:
        model: as `reduce` takes it, not reduced.
        strategy: trained in place.
        batches: what the model is called with, batch by batch. Taken again from the beginning
            where `steps` are more; those without pictures are left out.
        layer: whose attention teaches; a share of the depth below 1.
        scheduler: at whose stops the scorer is to work; None means the strategy's own.
        steps: optimiser steps; None means one for each batch.
        lr: of AdamW, without an optimiser.
        teacher: `"attention"` of the tokens that ask, `"attention_before"` of the same one layer
            earlier, `"attention_received"` from all tokens, `"text_attention"` of all text tokens.
        optimizer: of `strategy.parameters()` (built by `strategy.materialize(width)`).
        adapter: as `reduce` takes it.
        seed: of untrained parameters.

    Returns:
        a row for each step: `step`, `loss` in nats, and `agreement`, the mean rank correlation
        (Spearman) of scores and attention, both before the step.

    Raises:
        TypeError: a strategy that is no learned scorer, or evidence that cannot be measured.
        ValueError: no batch had a visual token, an unknown teacher, or a layer beyond the model.
    """
    log: list[dict[str, float]] = []
    with _recording(model, strategy, scheduler, layer, teacher, adapter, seed) as recorder:
        if optimizer is None:
            optimizer = torch.optim.AdamW(strategy.parameters(), lr=lr)
        for found in _passes(model, recorder, batches, again=steps is not None):
            with torch.enable_grad():
                loss = torch.stack([divergence(*pair) for pair in found]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            row = {"step": len(log), "loss": float(loss.detach())}
            log.append(row | {"agreement": float(torch.stack([ranks(*p) for p in found]).mean())})
            if len(log) == steps:
                break
    return log


def agreement(
    model: nn.Module,
    strategy: LearnedScorer,
    batches: Batches,
    *,
    layer: int | float = 0.75,
    scheduler: Scheduler | None = None,
    teacher: str = "attention",
    adapter: Any = None,
    seed: int = 0,
) -> float:
    """How well a scorer ranks tokens as the attention of layer `layer` does, -1 to 1.

    The mean rank correlation (Spearman) over batches and stops; nothing is trained. Arguments and
    errors are those of `distill`.
    """
    with _recording(model, strategy, scheduler, layer, teacher, adapter, seed) as recorder:
        each = [ranks(*p) for found in _passes(model, recorder, batches, False) for p in found]
    return float(torch.stack(each).mean())


def divergence(scores: Tensor, target: Tensor, among: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softmax(`scores`) from `target`, mean over samples, in nats.

    Args:
        scores: (b, v).
        target: (b, v), not below zero; made to sum to one over `among`.
        among: (b, v) the tokens that count. Samples with fewer than two do not.
    """
    several = among.sum(dim=1) > 1
    target = target.masked_fill(~among, 0.0)
    target = target / target.sum(dim=1, keepdim=True).clamp(min=torch.finfo(target.dtype).tiny)
    low = torch.finfo(scores.dtype).min
    guess = scores.masked_fill(~among, low).log_softmax(dim=1)
    each = (torch.xlogy(target, target) - target * guess).masked_fill(~among, 0.0).sum(dim=1)
    return each[several].mean() if bool(several.any()) else each.sum() * 0.0


def ranks(scores: Tensor, target: Tensor, among: Tensor) -> Tensor:
    """Spearman's rank correlation of `scores` and `target`, both (b, v), mean over samples.

    Equal values share the middle of their ranks. Samples with fewer than two tokens among those
    that count are left out; one whose scores are all equal orders nothing, and counts as 0.
    """
    found = []
    for mine, theirs, which in zip(scores.detach(), target, among, strict=True):
        if int(which.sum()) > 1:
            one, other = (x[which].double().cpu().numpy() for x in (mine, theirs))
            flat = np.ptp(one) == 0 or np.ptp(other) == 0
            found.append(0.0 if flat else float(spearmanr(one, other).statistic))
    return scores.new_tensor(found).mean() if found else scores.new_zeros(())


@dataclass(eq=False)
class ScoreRecorder(Strategy):
    """Records, as the unreduced model runs, scores at the stops, attention at the teacher's layer.

    Attributes:
        pupil: whose scores are taken, with gradients.
        teacher: evidence that is its target.
        at: the layers of the pupil's stops.
        layer: that of the teacher.
    """

    pupil: LearnedScorer
    teacher: str
    at: frozenset[int] = frozenset()
    layer: int = 0
    scores: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    target: Tensor | None = None

    observe_only: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """What the pupil reads, and its teacher."""
        text = {"text_valid"} if self.teacher == "text_attention" else set()
        return self.pupil.needs | {self.teacher} | text

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Everything stays."""
        if tokens.layer in self.at:
            self.pupil.materialize(tokens.hidden.shape[-1], tokens.seed, tokens.hidden.device)
            with torch.enable_grad():
                self.scores.append((self.pupil.score(tokens), candidates(tokens)))
        if tokens.layer == self.layer:
            self.target = self._taught(tokens)
        return Plan.everything(tokens.valid)

    def scheduler(self) -> Scheduler:
        """The pupil's; `RecordingStops` adds the teacher's layer."""
        return self.pupil.scheduler()

    def take(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Scores, target and candidates of every stop of the latest pass; none without pictures."""
        scores, target = self.scores, self.target
        self.scores, self.target = [], None
        return [] if target is None else [(s, target.to(s.device), among) for s, among in scores]

    def _taught(self, tokens: Tokens) -> Tensor:
        """(b, v) attention, mean over heads, and over the text tokens that count."""
        x = tokens[self.teacher].float().mean(dim=1)
        if x.dim() == 2:
            return x
        valid = tokens["text_valid"].float()[..., None]
        return (x * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class RecordingStops(Scheduler):
    """Stops where another schedule has some and at one more layer; all keep everything."""

    schedule: Scheduler
    layer: int | float

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """In order of layers."""
        layers = {stop.layer for stop in self.schedule.stops(depth)} | {layer_at(self.layer, depth)}
        return tuple(Stop(layer, 1.0) for layer in sorted(layers))


@contextmanager
def _recording(
    model: nn.Module,
    strategy: LearnedScorer,
    scheduler: Scheduler | None,
    layer: int | float,
    teacher: str,
    adapter: Any,
    seed: int,
) -> Iterator[ScoreRecorder]:
    """A model in evaluation mode, with its attention recorded."""
    if not isinstance(strategy, LearnedScorer):
        raise Incompatible(f"only a LearnedScorer can be taught, not {strategy!r}")
    one_of(teacher, TEACHERS, "teacher")
    schedule = strategy.scheduler() if scheduler is None else scheduler
    recorder, stops = ScoreRecorder(strategy, teacher), RecordingStops(schedule, layer)
    with reduce(model, recorder, stops, adapter=adapter, seed=seed) as reduction:
        depth = len(reduction.decoder.layers)
        strategy.initialize(reduction.decoder, seed)
        recorder.at = frozenset(stop.layer for stop in schedule.stops(depth))
        recorder.layer = layer_at(layer, depth)
        mode = model.training
        model.eval()
        try:
            yield recorder
        finally:
            model.train(mode)


def _passes(
    model: nn.Module, recorder: ScoreRecorder, batches: Batches, again: bool
) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """The recording of every batch with visual tokens; without end where `again`."""
    while True:
        any_ = False
        for batch in batches:
            with torch.no_grad():
                model(**batch)
            if found := recorder.take():
                any_ = True
                yield found
        if not any_:
            raise BadOption("no batch had visual tokens: there is nothing to learn from")
        if not again:
            return
