"""A schedule that training grows into."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tokenreduce.checks import one_of, share
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.schedulers.wrapped import TARGET, named, towards

Shape = Literal["linear", "cosine"]


@schedulers.register("curriculum")
@dataclass(frozen=True)
class Curriculum(Scheduler):
    """Anneals another schedule in training: from keeping every token to the shares of `target`.

    Up to the progress `begin` all tokens stay, from `end` on the target's shares hold, and in
    between every share falls in a straight line or along half a cosine wave. At inference
    (progress 1) it is the target.

    Raises:
        ValueError: `begin` after `end`, a value outside 0 to 1, an unknown shape.
    """

    target: Scheduler | Mapping[str, Any] | str = TARGET
    """A scheduler, its name, or a mapping with its `name` and options."""
    begin: float = 0.0
    """Share of training up to which everything stays."""
    end: float = 0.5
    """Share of training from which on the target's shares hold."""
    shape: Shape = "linear"
    """linear | cosine"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", named(self.target))
        if share(self.begin, "begin") > share(self.end, "end"):
            raise BadOption(
                f"begin={self.begin!r} comes after end={self.end!r}: shares fall between them"
            )
        one_of(self.shape, get_args(Shape), "shape")

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """The target's stops, as far on their way down as training is."""
        return towards(named(self.target).stops(depth, progress), self.part(progress))

    def part(self, progress: float) -> float:
        """How much of the way from keeping everything (0) to the target (1) is done."""
        if progress >= self.end:
            return 1.0
        if progress <= self.begin:
            return 0.0
        way = (progress - self.begin) / (self.end - self.begin)
        return way if self.shape == "linear" else (1 - math.cos(math.pi * way)) / 2
