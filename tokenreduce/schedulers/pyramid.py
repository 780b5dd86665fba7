"""Equal stages, each with a fixed share of the tokens of the stage before."""

from __future__ import annotations

from dataclasses import dataclass

from tokenreduce.checks import integer, share
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import (
    Rounding,
    Scheduler,
    Stop,
    checked_floor,
    checked_rounding,
    schedulers,
)


@schedulers.register("pyramid")
@dataclass(frozen=True)
class Pyramid(Scheduler):
    """Cuts the decoder into `stages` equal stages; stage s keeps `ratio**s` of the tokens.

    32 layers, 4 stages, ratio 0.5: halves, quarters and eighths from layers 8, 16 and 24 on.

    Counts are taken from the original number, as the code of PyramidDrop does (`rounding="floor"`
    is its rule). The paper's text drops the rounded-up share of what is left at each stage; at the
    default ratio of 0.5 the two agree, at others they may differ by one token.

    Source: PyramidDrop (arXiv 2410.17247); `layer_list` and `image_token_ratio_list`
    in Cooperx521/PyramidDrop.

    Raises:
        ValueError: fewer than 2 stages, or a ratio outside 0 to 1.
    """

    stages: int = 4
    """Equal parts of the decoder."""
    ratio: float = 0.5
    """Share of the stage before that each stage keeps."""
    rounding: Rounding = "nearest"
    """nearest | floor | ceil; floor is the rule of the PyramidDrop code."""
    at_least: int | None = None
    """Tokens that a share above 0 leaves; null: 1, and 0 under floor."""

    def __post_init__(self) -> None:
        integer(self.stages, "stages (one stage alone never reduces)", least=2)
        share(self.ratio, "ratio")
        checked_rounding(self.rounding)
        checked_floor(self.at_least)

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """A stop at the input of every stage but the first."""
        if self.stages > depth:
            raise BadOption(
                f"stages={self.stages} is more than the decoder has layers ({depth}): "
                f"use at most {depth}"
            )
        return tuple(
            Stop(depth * s // self.stages, self.ratio**s, self.rounding, self.at_least)
            for s in range(1, self.stages)
        )
