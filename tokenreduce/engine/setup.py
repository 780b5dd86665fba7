"""What stays the same from pass to pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenreduce.adapter import Adapter
from tokenreduce.engine.inside import Inside
from tokenreduce.scheduler import Stop
from tokenreduce.strategy import Positions, Strategy
from tokenreduce.tower import Part


@dataclass
class Setup:
    """What stays the same from pass to pass."""

    adapter: Adapter
    decoder: Part
    strategy: Strategy
    stops: Mapping[int, Stop]
    positions: Positions
    seed: int
    names: tuple[str, ...]  # parameters of a decoder layer's forward, after self
    inside: Inside | None = None  # where the vision tower merges
    min_tokens: int = 0  # samples with fewer visual tokens in a pass are left as they are

    @property
    def grouped(self) -> bool:
        """Whether the plan of layer 0 is what the tower has merged, and no strategy's."""
        return self.inside is not None and not self.inside.spread

    def spared(self, counts: Sequence[int]) -> tuple[bool, ...]:
        """Which samples have too few visual tokens to be worth a reduction that would come."""
        due = any(stop.keep < 1 for stop in self.stops.values())
        return tuple(due and 0 < n < self.min_tokens for n in counts)
