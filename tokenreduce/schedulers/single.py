"""One reduction, at one layer."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.checks import layer_or_share, share
from tokenreduce.scheduler import (
    Rounding,
    Scheduler,
    Stop,
    checked_floor,
    checked_rounding,
    layer_at,
    schedulers,
)


@schedulers.register("single")
@dataclass(frozen=True)
class Single(Scheduler):
    """Reduces once, at the input of `layer`, to the share `keep` of the tokens.

    `layer` is a layer, or a share of the depth below 1 (0.5: half-way). Layer 0 is before the
    language model; layer 2 with half of the tokens is FastV's default.

    Source: FastV (arXiv 2403.06764): K is `layer`, R is `1 - keep`.

    Raises:
        ValueError: a negative layer, or a share outside 0 to 1.
    """

    layer: int | float = 2
    """A layer, or a share of the depth below 1 (0.5: half-way)."""
    keep: float = 0.5
    """Of the original tokens."""
    rounding: Rounding = "nearest"
    """nearest | floor | ceil; floor is the rule of the PyramidDrop code."""
    at_least: int | None = None
    """Tokens that a share above 0 leaves; null: 1, and 0 under floor."""

    def __post_init__(self) -> None:
        layer_or_share(self.layer)
        share(self.keep, "keep")
        checked_rounding(self.rounding)
        checked_floor(self.at_least)

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """The one stop."""
        return (Stop(layer_at(self.layer, depth), self.keep, self.rounding, self.at_least),)
