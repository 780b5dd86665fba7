"""A schedule whose budget is drawn anew for every training step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenreduce.checks import integer, share
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.schedulers.wrapped import TARGET, named, towards


@schedulers.register("stochastic")
@dataclass(frozen=True)
class Stochastic(Scheduler):
    """Draws in every training step how far to go towards `target`: one model for many budgets.

    The part of the way, from keeping everything (0) to the target's shares (1), is uniform between
    `least` and `most`. It depends on `seed` and on the progress of training alone: every process,
    every micro-batch of a step and a resumed run draw the same. At inference (progress 1) it is the
    target.

    Raises:
        ValueError: `least` above `most`, a value outside 0 to 1, a seed below 0.
    """

    target: Scheduler | Mapping[str, Any] | str = TARGET
    """A scheduler, its name, or a mapping with its `name` and options."""
    least: float = 0.0
    """Part of the way from keeping everything to the target, at least."""
    most: float = 1.0
    """At most."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", named(self.target))
        if share(self.least, "least") > share(self.most, "most"):
            raise BadOption(f"least={self.least!r} is above most={self.most!r}: swap them")
        integer(self.seed, "seed", least=0)

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """The target's stops, at the part of the way that this step draws."""
        return towards(named(self.target).stops(depth, progress), self.part(progress))

    def part(self, progress: float) -> float:
        """How much of the way from keeping everything (0) to the target (1) this step goes."""
        if progress >= 1:
            return 1.0
        # a hash, not a generator: there is no state to save, and neighbours have nothing in common
        text = f"{self.seed}:{progress!r}".encode()
        drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
        return self.least + (self.most - self.least) * drawn
