"""What stays the same from pass to pass."""

from __future__ import annotations

from collections.abc import Mapping
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

    @property
    def grouped(self) -> bool:
        """Whether the plan of layer 0 is what the tower has merged, and no strategy's."""
        return self.inside is not None and not self.inside.spread
