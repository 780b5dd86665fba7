"""A prefill with cache, reduced and unreduced in turn, and what can be said of the two."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

import tokenreduce as tr
from tests.benchmark.sizes import CLOCK, DEVICE, ENGINE, TEXT, Size, models, prompt
from tokenreduce.benchmarking.counts import COUNTED, flops
from tokenreduce.cost import shape_of
from tokenreduce.inference.clock import Times, paired


@torch.inference_mode()
def run(model: Any, embeds: Any) -> Any:
    """The prefill that `generate()` begins with: a fresh cache, logits of the last position."""
    return model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)


@dataclass
class Trial:
    """One reduction on one prompt."""

    size: Size
    visual: int
    strategy: tr.Strategy
    scheduler: tr.Scheduler | None = None
    ours: Times = field(default_factory=lambda: Times(CLOCK))
    theirs: Times = field(default_factory=lambda: Times(CLOCK))
    inside: list[float] = field(default_factory=list)
    adapter: Any = None
    pictures: list[tr.Picture] = field(default_factory=list)
    logits: Literal["full", "text"] = "full"
    batch: int = 1

    def __post_init__(self) -> None:
        self.model, self.twin = models(self.size)
        self.prompt = prompt(self.visual, self.batch)
        self.embeds, self.mask = self.prompt.embeddings(self.model), self.prompt.mask(DEVICE)
        self.reduction = tr.reduce(
            self.model, self.strategy, self.scheduler, adapter=self.adapter, logits=self.logits
        )

    def unreduced(self) -> None:
        """One round of the other side."""
        self.theirs.measure(lambda: run(self.twin, self.embeds))

    def reduced(self) -> None:
        """One round of this side, with the engine's share in it."""
        before = ENGINE.seconds
        ENGINE.handed.clear()
        with self.reduction.visual(self.mask, self.pictures), ENGINE.counting():
            self.ours.measure(lambda: run(self.model, self.embeds))
        self.inside.append(ENGINE.seconds - before)

    def warm_up(self) -> None:
        """One round of both that does not count."""
        self.unreduced()
        self.reduced()
        self.ours.forget()
        self.theirs.forget()
        self.inside.clear()

    def close(self) -> None:
        """Takes the reduction off."""
        self.reduction.remove()

    def facts(self) -> dict[str, Any]:
        """Everything a reader needs beside the time of the reduced prefill."""
        tokens = [row[0] for row in self.reduction.report.tokens_per_layer]
        full = [self.visual + TEXT] * self.size.layers
        shape = shape_of(self.model.config)
        ratio = paired(self.ours, self.theirs)
        engine, spared, reduced = min(self.inside), ENGINE.spared(), min(self.ours.clock)
        facts: dict[str, Any] = {
            "model": str(self.size),
            "visual_tokens": self.visual,
            "text_tokens": TEXT,
            "batch": self.batch,
            "strategy": repr(self.strategy),
            "stops": [(stop.layer, stop.keep) for stop in self.reduction.stops],
            "tokens_per_layer": tokens,
            "clock": CLOCK.name,
            "reduced": self.ours.summary(),
            "unreduced": self.theirs.summary(),
            "time_ratio": ratio,
            "engine_ms": 1e3 * engine,
            "spared_ms": 1e3 * spared,
            "engine_share": engine / reduced,
            "added_share": (engine - spared) / reduced,
        }
        for name in COUNTED:
            share = flops(shape, tokens, name) / flops(shape, full, name)
            facts[name] = {
                "flops": flops(shape, tokens, name),
                "flops_full": flops(shape, full, name),
                "flops_ratio": share,
                "saved_time_over_saved_flops": (1 - ratio["of_minima"]) / (1 - share),
                "by_medians": (1 - ratio["of_medians"]) / (1 - share),
            }
        return facts
