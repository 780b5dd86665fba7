"""A share that falls along half a cosine wave."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from tokenreduce.checks import integer, layer_or_share, share
from tokenreduce.scheduler import (
    Rounding,
    Scheduler,
    Stop,
    between,
    checked_floor,
    checked_rounding,
    schedulers,
)


@schedulers.register("cosine")
@dataclass(frozen=True)
class Cosine(Scheduler):
    """Lets the share of tokens fall along a half cosine from 1 at `first` to `keep` at `last`.

    `first` and `last` are layers, or shares of the depth below 1. Up to and including `first`
    every token stays; then there is a stop every `every` layers, and one at `last`. The fall is
    slow at both ends and steepest half-way, where the share is `(1 + keep) / 2`.

    Raises:
        ValueError: places that are neither layers nor shares, a share outside 0 to 1, a step
            below 1.
    """

    first: int | float = 0.25
    """A layer, or a share of the depth below 1."""
    last: int | float = 0.75
    """The same."""
    keep: float = 0.125
    """Share of the original tokens that is left at `last`."""
    every: int = 1
    """Layers from one stop to the next."""
    rounding: Rounding = "nearest"
    """nearest | floor | ceil; floor is the rule of the PyramidDrop code."""
    at_least: int | None = None
    """Tokens that a share above 0 leaves; null: 1, and 0 under floor."""

    def __post_init__(self) -> None:
        layer_or_share(self.first, "first")
        layer_or_share(self.last, "last")
        share(self.keep, "keep")
        integer(self.every, "every", least=1)
        checked_rounding(self.rounding)
        checked_floor(self.at_least)

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """The stops after `first`, up to `last`."""
        return tuple(
            Stop(layer, self._share(t), self.rounding, self.at_least)
            for layer, t in between(self.first, self.last, self.every, depth)
        )

    def _share(self, part: float) -> float:
        """What is kept after `part` (0 to 1) of the way."""
        return self.keep + (1 - self.keep) * (1 + cos(pi * part)) / 2
