"""A training step: forward, backward and AdamW, reduced against unreduced, in turn.

The paper trains LLaVA-NeXT-7B in 218 GPU hours in place of 366 (PyramidDrop, arXiv 2410.17247,
table 1): 0.60 of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import tokenreduce as tr
from tests.benchmark.autograd import stored_bytes
from tests.benchmark.prefill import Trial
from tests.benchmark.sizes import CLOCK, DEVICE, SMALL, SMOKE, TEXT, VISUAL, Size
from tokenreduce.benchmarking.allocation import peak_bytes
from tokenreduce.inference.clock import paired

ROUNDS = 2 if SMOKE else 4
ASKED = 0.65
"""Of the time of an unreduced step, where visual tokens dominate."""
ANSWER = 16


@dataclass
class Step(Trial):
    """One reduction in one training step; `checkpointed` stores no activations within layers."""

    checkpointed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labels = torch.full((1, self.visual + TEXT), -100, device=self.embeds.device)
        self.labels[:, -ANSWER:] = torch.arange(ANSWER, device=self.embeds.device)
        self.optimisers = {}
        self.stored: dict[str, int] = {}
        self.peak: dict[str, Any] = {}
        for name, model in (("reduced", self.model), ("unreduced", self.twin)):
            model.train()
            self.optimisers[name] = torch.optim.AdamW(model.parameters(), lr=1e-5)
            if self.checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": False})

    def unreduced(self) -> None:
        """One round of the other side."""
        self.theirs.measure(lambda: self._step("unreduced", self.twin))

    def reduced(self) -> None:
        """One round of this side."""
        with self.reduction.visual(self.mask):
            self.ours.measure(lambda: self._step("reduced", self.model))

    def measure_memory(self) -> None:
        """Counts what a forward pass stores for backward, and the most that a step holds."""
        for name, model in (("reduced", self.model), ("unreduced", self.twin)):
            with self.reduction.visual(self.mask):
                self.stored[name] = stored_bytes(lambda model=model: self._loss(model))
                self.peak[name] = peak_bytes(lambda model=model: self._backward(model), DEVICE)
            model.zero_grad()

    def _backward(self, model: Any) -> None:
        self._loss(model).backward()

    def close(self) -> None:
        """Leaves the models as others expect them."""
        super().close()
        for model in (self.model, self.twin):
            model.gradient_checkpointing_disable()
            model.zero_grad()
            model.eval()

    def _loss(self, model: Any) -> Any:
        given = self.embeds.clone().requires_grad_()  # as a projector's output
        return model(inputs_embeds=given, labels=self.labels, use_cache=False).loss

    def _step(self, name: str, model: Any) -> None:
        self._backward(model)
        self.optimisers[name].step()
        self.optimisers[name].zero_grad()


def _sizes() -> list[Any]:
    return [
        pytest.param((SMALL, visual, name, on), id=f"{visual}-{name}{'-checkpointed' * on}")
        for visual in sorted({VISUAL[0], VISUAL[-1]})
        for name in ("pyramid_drop", "random")
        for on in (False, True)
        if name == "pyramid_drop" or not on
    ]


@pytest.mark.benchmark(group="training step", timer=CLOCK.now)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("case", _sizes())
def test_a_training_step(benchmark: Any, case: tuple[Size, int, str, bool]) -> None:
    size, visual, name, on = case
    trial = Step(
        size, visual, tr.strategies.build(name), tr.Pyramid(), logits="text", checkpointed=on
    )
    try:
        trial.measure_memory()
        trial.unreduced()  # AdamW makes its moments
        trial.reduced()
        trial.ours.forget()
        trial.theirs.forget()
        benchmark.pedantic(trial.reduced, setup=trial.unreduced, rounds=ROUNDS)
        ratio = paired(trial.ours, trial.theirs)
        benchmark.extra_info.update(
            model=str(size),
            visual_tokens=visual,
            text_tokens=TEXT,
            strategy=repr(trial.strategy),
            scheduler=repr(tr.Pyramid()),
            checkpointed=on,
            flops_ratio=trial.reduction.report.flops / trial.reduction.report.flops_full,
            time_ratio=ratio,
            reduced=trial.ours.summary(),
            unreduced=trial.theirs.summary(),
            stored_bytes=dict(trial.stored),
            stored_ratio=trial.stored["reduced"] / trial.stored["unreduced"],
            peak_bytes=dict(trial.peak),
            peak_ratio=trial.peak["reduced"] / trial.peak["unreduced"],
            asked=ASKED,
        )
    finally:
        trial.close()
    assert trial.stored["reduced"] < trial.stored["unreduced"]
    if not on:  # checkpointed, the most is held where layer 0, of full length, is run again
        assert trial.peak["reduced"] < trial.peak["unreduced"]
    if not SMOKE and visual == VISUAL[-1]:
        assert ratio["of_minima"] <= ASKED
