"""Candidates in turn on one prompt: prefill, decoding steps, bytes; the unreduced model among them.

An arm's turn applies the reduction, runs prefill and decoding, and removes the reduction again; the
order of the arms moves on by one with every round, so that none always follows the same one.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

import tokenreduce as tr
from tokenreduce.benchmarking.allocation import cache_bytes, peak_bytes
from tokenreduce.benchmarking.counts import COUNTED, flops
from tokenreduce.benchmarking.synthetic import MarkedPrompt, PicturePrompt
from tokenreduce.cost import shape_of
from tokenreduce.engine.call import cache_of, with_cache
from tokenreduce.inference.clock import Clock, Times, interval, paired, ratios


@dataclass(frozen=True)
class Candidate:
    """A recipe under the name that tables show; without a recipe the unreduced model.

    `share` is the share of the visual tokens that was asked for, None where the schedule said it.
    """

    name: str
    recipe: tr.Recipe | None = None
    share: float | None = None


UNREDUCED = Candidate("unreduced")


@dataclass
class Arm:
    """The measurements of one candidate."""

    candidate: Candidate
    clock: Clock
    prefill: Times = field(init=False)
    step: Times = field(init=False)
    cache: int = 0
    peak: int | None = None
    report: tr.Report | None = None
    reduction: str | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        self.prefill, self.step = Times(self.clock), Times(self.clock)


class Interleaved:
    """All candidates on one prompt, in interleaved rounds; the first arm is the unreduced model."""

    def __init__(
        self,
        model: Any,
        prompt: MarkedPrompt | PicturePrompt,
        candidates: Sequence[Candidate],
        new_tokens: int = 0,
        progress: bool | None = False,
    ) -> None:
        self.model, self.prompt, self.new_tokens = model, prompt, new_tokens
        self.progress = progress  # a bar; None: where there is a screen
        self.clock = Clock(model.device)
        self.arms = [Arm(one, self.clock) for one in (UNREDUCED, *candidates)]
        self._inputs = {k: x.to(model.device) for k, x in prompt.inputs(model).items()}
        self._token = {k: x.to(model.device) for k, x in prompt.token(model).items()}

    def run(self, rounds: int, memory: bool = True) -> Interleaved:
        """One uncounted round to warm up, then `rounds` of them, then the bytes."""
        self.warm_up()
        for i in self._shown(rounds):
            gc.collect()
            at = i % len(self.arms)
            for arm in (*self.arms[at:], *self.arms[:at]):
                self.run_arm(arm)
        if memory:
            self.measure_memory()
        return self

    def _shown(self, rounds: int) -> Iterable[int]:
        """The numbers of the rounds, under a bar."""
        from tqdm.auto import tqdm

        hidden = None if self.progress is None else not self.progress
        name = f"{self.prompt.visual} visual tokens, batch {self.prompt.batch}"
        found: Iterable[int] = tqdm(
            range(rounds), desc=name, unit="round", disable=hidden, leave=False
        )
        return found

    def warm_up(self) -> None:
        """One round that does not count."""
        for arm in self.arms:
            self.run_arm(arm)
            arm.prefill.forget()
            arm.step.forget()

    def run_arm(self, arm: Arm) -> None:
        """A prefill and its decoding steps, with the candidate's reduction on."""
        with self._applied(arm):
            cache = cache_of(arm.prefill.measure(self._prefill))
            arm.cache = cache_bytes(cache)
            for _ in range(self.new_tokens):
                arm.step.measure(lambda: self._decode(cache))

    def measure_memory(self) -> None:
        """Counts the peak memory of every arm's prefill; not timed."""
        for arm in self.arms:
            with self._applied(arm):
                arm.peak = peak_bytes(self._prefill, self.model.device)

    @contextmanager
    def _applied(self, arm: Arm) -> Iterator[None]:
        """The model as this candidate wants it."""
        recipe = arm.candidate.recipe
        if recipe is None:
            yield
            return
        reader = self.prompt.reader(tr.unwrap(self.model))
        with (
            tr.reduce(self.model, recipe, adapter=reader) as reduction,
            self.prompt.shown(reduction),
        ):
            yield
            arm.report, arm.positions = reduction.report, reduction.positions
            arm.reduction = f"{reduction.strategy} at {reduction.scheduler}"

    @torch.inference_mode()
    def _prefill(self) -> Any:
        return self.model(**self._inputs, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def _decode(self, cache: Any) -> None:
        known = with_cache(self.model, cache)
        self.model(**self._token, **known, use_cache=True, logits_to_keep=1)

    # -- what can be said of it ----------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Every candidate compared with the unreduced model, as plain data."""
        return [self._row(arm) for arm in self.arms[1:]]

    def _row(self, arm: Arm) -> dict[str, Any]:
        base, one, report = self.arms[0], arm.candidate, arm.report
        assert report is not None  # every arm but the first has had its turn
        row: dict[str, Any] = {
            "strategy": one.name,
            "reduction": arm.reduction,
            "positions": arm.positions,
            "asked_share": one.share,
            "kept_share": self._kept(report),
            "stops": [[stop["layer"], stop["keep"]] for stop in report.stops],
            "tower": self.prompt.tower,
            "visual_tokens": self.prompt.visual,
            "text_tokens": self.prompt.text,
            "batch": self.prompt.batch,
            "tokens_per_layer": [tokens[0] for tokens in report.tokens_per_layer],
            "flops_share": self._flops(report),
            "prefill": compared(arm.prefill, base.prefill),
            "kv_bytes": arm.cache,
            "kv_bytes_full": base.cache,
            "peak_bytes": arm.peak,
            "peak_bytes_full": base.peak,
        }
        if self.new_tokens:
            row["decode_step"] = compared(arm.step, base.step, self.new_tokens)
            row["tokens_per_second"] = self._throughput(arm)
            row["tokens_per_second_full"] = self._throughput(base)
        return row

    def _kept(self, report: tr.Report) -> float:
        """The share of the visual tokens that a layer has, averaged over the layers."""
        visual, layers = report.visual_tokens[0], report.tokens_per_layer
        text = self.prompt.text
        return float(sum(row[0] - text for row in layers) / (visual * len(layers)))

    def _flops(self, report: tr.Report) -> dict[str, float]:
        """FLOPs of the decoder layers, as a share of the unreduced ones."""
        shape = shape_of(tr.unwrap(self.model).config)
        tokens = [row[0] for row in report.tokens_per_layer]
        full = [report.visual_tokens[0] + self.prompt.text] * len(tokens)
        return {c: flops(shape, tokens, c) / flops(shape, full, c) for c in COUNTED}

    def _throughput(self, arm: Arm) -> float:
        """New tokens of the batch per second: the first comes with the prefill."""
        step = statistics.median(arm.step.clock)
        seconds = statistics.median(arm.prefill.clock) + self.new_tokens * step
        return float(self.prompt.batch * (1 + self.new_tokens) / seconds)


def compared(ours: Times, theirs: Times, each: int = 1) -> dict[str, Any]:
    """Two series of the same rounds: milliseconds, ratios, and the interval of the ratio.

    each: measurements in a round. They are not independent, so that their median counts once.
    """
    pairs = ratios(ours, theirs)
    rounds = [statistics.median(pairs[i : i + each]) for i in range(0, len(pairs), each)]
    bounds = interval(rounds)
    return {
        "reduced": ours.summary(),
        "unreduced": theirs.summary(),
        "ratio": paired(ours, theirs),
        "interval": [bounds.low, bounds.high],
        "coverage": bounds.coverage,
        "rounds": len(rounds),
    }
