"""What an engine is set to do: with which strategy, where, on which decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenreduce.adapter import Adapter
from tokenreduce.engine.tower.bridge import TowerBridge
from tokenreduce.scheduler import Stop
from tokenreduce.strategy import Positions, Strategy
from tokenreduce.tower import Part


@dataclass(frozen=True)
class EngineConfig:
    """What holds for every pass; another one takes its place when training progress moves stops.

    Attributes:
        adapter: how the model is read.
        decoder: the module whose `layers` are the decoder layers.
        strategy: which tokens stay.
        stops: by layer.
        positions: whether positions are kept or renumbered.
        seed: of strategies that draw.
        bridge: from a vision tower that merges to the language model; None elsewhere.
        min_tokens: samples with fewer visual tokens in a pass are left as they are.
    """

    adapter: Adapter
    decoder: Part
    strategy: Strategy
    stops: Mapping[int, Stop]
    positions: Positions
    seed: int
    bridge: TowerBridge | None = None
    min_tokens: int = 0

    @property
    def grouped(self) -> bool:
        """Whether the plan of layer 0 is what the tower has merged, and no strategy's."""
        return self.bridge is not None and not self.bridge.expanded

    @property
    def attention(self) -> str:
        """The decoder's attention implementation."""
        return str(getattr(self.decoder.config, "_attn_implementation", "sdpa"))

    @property
    def asks(self) -> bool:
        """Whether a stop would leave fewer tokens."""
        return any(stop.keep < 1 for stop in self.stops.values())

    def spared(self, counts: Sequence[int]) -> tuple[bool, ...]:
        """Which samples have too few visual tokens to be worth a reduction that would come."""
        return tuple(self.asks and 0 < n < self.min_tokens for n in counts)

    def budget(self, layer: int, counts: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
        """How many tokens of each sample stay at the stop at `layer`.

        Args:
            layer: of the stop.
            counts: visual tokens that each sample had at layer 0.
            left: how many of these have come this far.
        """
        stop, spared = self.stops[layer], self.spared(counts)
        return tuple(
            have if alone else min(stop.count(n), have)
            for n, have, alone in zip(counts, left, spared, strict=True)
        )
