"""What stops cost on the prompts at hand, in multiply-accumulates of the decoder's prefill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenreduce.cost import macs, shape_of
from tokenreduce.scheduler import Stop

Stops = tuple[tuple[int, float], ...]
"""Layers and shares of a schedule, in order."""


class CostTable:
    """The cost of any schedule over prompts of known lengths, text included.

    Choosing the tokens is not counted, as nowhere in `tokenreduce.cost`: it grows with the number
    of stops.

    Args:
        config: of the model, its dict, or a `tokenreduce.cost.DecoderShape`.
        counts: visual and other tokens of every prompt.
        convention: as in `tokenreduce.cost`.
        min_tokens: prompts with fewer visual tokens keep all, as in `tokenreduce.reduce`.
    """

    def __init__(
        self,
        config: Any,
        counts: Iterable[tuple[int, int]],
        convention: str = "matmul",
        min_tokens: int = 0,
    ) -> None:
        self.shape = shape_of(config)
        self.counts = Counter(counts)
        self.convention = convention
        self.min_tokens = min_tokens
        self.layer = cache(self._layer)
        self.full = self.shape.layers * self.layer(1.0)

    @property
    def depth(self) -> int:
        """Layers of the decoder."""
        return self.shape.layers

    def _layer(self, keep: float) -> int:
        """MACs of one layer that has a share of the visual tokens, over all prompts."""
        stop = Stop(0, keep)

        def left(visual: int) -> int:
            return visual if visual < self.min_tokens else stop.count(visual)

        return sum(
            number * macs(self.shape, [left(visual) + text], self.convention)
            for (visual, text), number in self.counts.items()
        )

    def share(self, stops: Stops) -> float:
        """Of the unreduced model's MACs."""
        total, at = 0, [*stops, (self.depth, 0.0)]
        keep, start = 1.0, 0
        for layer, following in at:
            total += (layer - start) * self.layer(keep)
            keep, start = following, layer
        return total / self.full
