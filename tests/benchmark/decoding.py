"""Decoding steps on two caches that grow alike: one of a reduced prompt, one of the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tokenreduce as tr
from tests.benchmark.sizes import CLOCK, DEVICE, TEXT, Size, models, prompt
from tokenreduce.inference.clock import Times, paired

PADDING = 20
"""Padded positions of the second sample in a batch of two."""


@dataclass
class Decoding:
    """A prompt that both models have read, and steps that both take in turn."""

    size: Size
    visual: int
    batch: int
    positions: Any
    ours: Times = field(default_factory=lambda: Times(CLOCK))
    theirs: Times = field(default_factory=lambda: Times(CLOCK))

    def __post_init__(self) -> None:
        self.model, self.twin = models(self.size)
        self.reduction = tr.reduce(self.model, tr.PyramidDrop(), positions=self.positions)
        made = prompt(self.visual, self.batch)
        embeds, self.image = made.embeddings(self.model), made.mask(DEVICE)
        self.token = made.embeddings(self.model, 1, stream=1)
        self.mask: Tensor | None = None
        if self.batch > 1:
            self.mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=DEVICE)
            self.mask[1:, :PADDING] = 0
        with self.reduction.visual(self.image):
            self.short = tr.cache_of(self._call(self.model, embeds, None))
        self.long = tr.cache_of(self._call(self.twin, embeds, None))

    @torch.inference_mode()
    def _call(self, model: Any, embeds: Tensor, cache: Any) -> Any:
        options: dict[str, Any] = tr.with_cache(model, cache)
        if self.mask is not None:
            new = embeds.shape[1]
            place = self.mask.cumsum(dim=1)[:, -new:] - 1
            options |= {"attention_mask": self.mask, "position_ids": place.clamp(min=0)}
        return model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **options)

    def unreduced(self) -> None:
        """One step of the other side; the mask grows for both."""
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self.theirs.measure(lambda: self._call(self.twin, self.token, self.long))

    def reduced(self) -> None:
        """One step of this side."""
        with self.reduction.visual(self.image):
            self.ours.measure(lambda: self._call(self.model, self.token, self.short))

    def warm_up(self, steps: int) -> None:
        """Steps that do not count."""
        for _ in range(steps):
            self.unreduced()
            self.reduced()
        self.ours.forget()
        self.theirs.forget()

    def close(self) -> None:
        """Takes the reduction off."""
        self.reduction.remove()

    def facts(self) -> dict[str, Any]:
        """Everything a reader needs beside the time of a reduced step."""
        report = self.reduction.report
        return {
            "model": str(self.size),
            "visual_tokens": self.visual,
            "text_tokens": TEXT,
            "batch": self.batch,
            "padding": 0 if self.mask is None else PADDING,
            "strategy": repr(self.reduction.strategy),
            "positions": self.reduction.positions,
            "kv_bytes_ratio": report.kv_bytes / report.kv_bytes_full,
            "clock": CLOCK.name,
            "reduced": self.ours.summary(),
            "unreduced": self.theirs.summary(),
            "time_ratio": paired(self.ours, self.theirs),
        }
