"""What the connector between vision tower and language model costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenreduce.cost.entries import read, size
from tokenreduce.cost.tower_sizes import Grid, TowerShape
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.registry import Registry


class Connector(ABC):
    """Turns the patches of a tower into visual tokens."""

    @abstractmethod
    def macs(self, grids: Sequence[Grid]) -> int:
        """MACs for these pictures."""

    @abstractmethod
    def tokens(self, grids: Sequence[Grid]) -> int | None:
        """Visual tokens of these pictures; None where their arrangement decides (tiles)."""


@dataclass(frozen=True)
class Step:
    """A matrix, and how many patches go into one of its rows.

    `times` counts how often it is there.
    """

    inputs: int
    outputs: int
    patches: int = 1
    times: int = 1

    def macs(self, patches: int) -> int:
        """MACs for so many patches."""
        return patches // self.patches * self.inputs * self.outputs * self.times


@dataclass(frozen=True)
class Projector(Connector):
    """Matrices on every patch, or on every square of patches.

    Attributes:
        steps: the matrices.
        patches: that one visual token is made of.
        arranged: whether tiles are joined, unpadded or scaled after it.
        video_pool: a frame's patches are averaged in squares of this side before the matrices.
    """

    steps: tuple[Step, ...]
    patches: int = 1
    arranged: bool = False
    video_pool: int = 1

    def macs(self, grids: Sequence[Grid]) -> int:
        """MACs of all matrices."""
        return sum(step.macs(self._given(grid)) for grid in grids for step in self.steps)

    def tokens(self, grids: Sequence[Grid]) -> int | None:
        """Patches over those of a token."""
        if self.arranged:
            return None
        return sum(self._given(grid) // self.patches for grid in grids)

    def _given(self, grid: Grid) -> int:
        by = self.video_pool if grid.video else 1
        return grid.frames * (grid.rows // by) * (grid.columns // by)


@dataclass(frozen=True)
class Resampler(Connector):
    """Aria's: a set of learned queries looks at the patches of a picture.

    Attributes:
        hidden: width of the tower.
        outputs: width of the language model.
        queries: how many there are for so many patches.
    """

    hidden: int
    outputs: int
    queries: Mapping[int, int]

    def macs(self, grids: Sequence[Grid]) -> int:
        """Six matrices on the queries, four on the patches, and the attention."""
        d, total = self.hidden, 0
        for grid in grids:
            p = grid.rows * grid.columns
            n = self._asked(p)
            square = (4 * n + 4 * p) * d * d  # q, out and both projections in front of attention
            mixed = 2 * n * p * d + n * self.outputs * (d + self.outputs)
            total += grid.frames * (square + mixed)
        return total

    def tokens(self, grids: Sequence[Grid]) -> int | None:
        """One for each query."""
        return sum(grid.frames * self._asked(grid.rows * grid.columns) for grid in grids)

    def _asked(self, patches: int) -> int:
        found = next((n for p, n in self.queries.items() if int(p) == patches), None)
        if found is None:
            raise BadOption(
                f"a picture of {patches} patches has no queries in this resampler "
                f"(known: {', '.join(map(str, self.queries))})"
            )
        return found


Rule = Callable[[Any, TowerShape, int], Connector]

connectors: Registry[Rule] = Registry("connector", "tokenreduce.cost.connector_kinds")
"""How a family connects: its `model_type` -> function of configuration, tower and the decoder's
width."""


def connector_of(config: Any, tower: TowerShape, width: int) -> Connector:
    """The connector in a transformers configuration or its dict.

    Args:
        config: of the whole model.
        tower: its vision tower.
        width: of the decoder.

    Raises:
        ValueError: an unknown family.
    """
    kind = str(read(config, "model_type"))
    if kind not in connectors:
        raise BadOption(
            f"no formula here describes how {kind!r} connects its vision tower"
            f"{did_you_mean(kind, connectors)} (known: {', '.join(connectors)}): use "
            "tokenreduce.cost.cost for the decoder alone"
        )
    return connectors[kind](config, tower, width)


def two_layers(inputs: int, width: int, **options: Any) -> Projector:
    """LLaVA's connector: two matrices on every patch."""
    return Projector((Step(inputs, width), Step(width, width)), **options)


def merger(part: Any, inputs: int, outputs: int, times: int = 1) -> Projector:
    """Qwen2-VL's connector: two matrices on every square of patches."""
    area = size(part, "spatial_merge_size") ** 2
    wide = area * inputs
    return Projector((Step(wide, wide, area, times), Step(wide, outputs, area, times)), area)
