"""The site of a reduction inside a vision tower, alone or in front of a language model.

Shapes: n pictures, o tokens that the tower begins with (class tokens first), k left at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokenreduce.engine.tower.merging import Merged, Merging
from tokenreduce.engine.tower.packed import PackedMerged, PackedMerging
from tokenreduce.report import EncoderReport
from tokenreduce.scheduler import Scheduler, Stop, check_within
from tokenreduce.strategy import TowerStrategy
from tokenreduce.tokens import Plan
from tokenreduce.tower import PackedTower, Tower


class TowerSite:
    """Tokens that merge between attention and MLP of a tower's layers.

    Args:
        tower: the facts of the tower.
        strategy: which tokens merge.
        scheduler: how many, as shares of the patches; None leaves that to the strategy.
        seed: for strategies that draw.
        tell: told of every pass.

    Raises:
        ValueError: a stop beyond the tower.
    """

    SILENT = "no picture passed through the encoder, or none had tokens to merge"
    """Why nothing may have been reduced."""

    def __init__(
        self,
        tower: Tower,
        strategy: TowerStrategy,
        scheduler: Scheduler | None = None,
        seed: int = 0,
        tell: Callable[[Merged], None] | None = None,
    ) -> None:
        self.tower, self.strategy, self.scheduler = tower, strategy, scheduler
        self.seed, self._tell = seed, tell
        self._latest: Merged | None = None
        self._merging: Merging | None = None
        self.applied = False
        depth = len(tower.layers)
        self.stops: tuple[Stop, ...] = () if scheduler is None else scheduler.stops(depth)
        check_within(self.stops, depth, "an encoder")

    def apply(self) -> None:
        """Puts every hook on, or none.

        Raises:
            ValueError: a tower that is reduced already.
        """
        how = (self.strategy, self.counts, self._remember, self.seed)
        packed = isinstance(self.tower, PackedTower)
        self._merging = PackedMerging(self.tower, *how) if packed else Merging(self.tower, *how)  # type: ignore[arg-type]

    def remove(self) -> bool:
        """Takes every hook off; False when they were off already."""
        return self._merging is not None and self._merging.remove()

    @property
    def on(self) -> bool:
        """Whether its hooks are on."""
        return self._merging is not None and bool(self._merging.handles)

    @property
    def asks(self) -> bool:
        """Whether a picture of many tokens would be left with fewer."""
        many = 1 << 16
        return self.counts(many)[-1] < many

    def counts(self, tokens: int) -> tuple[int, ...]:
        """Tokens after each layer, for an encoder that begins with so many; nothing runs.

        The strategy's own counts, or those of the scheduler: shares of the patches.
        """
        depth, fixed = len(self.tower.layers), self.tower.classes
        if self.scheduler is None:
            return self.strategy.counts(depth, tokens, fixed)
        left, counts = tokens, []
        shares = {stop.layer: stop for stop in self.stops}
        for i in range(depth):
            if i in shares:
                left = min(left, fixed + max(shares[i].count(tokens - fixed), 1))
            counts.append(left)
        return tuple(counts)

    @property
    def plans(self) -> dict[int, Plan]:
        """The plan of every layer that merged tokens in the latest pass."""
        return dict(self._passed().plans)

    @property
    def group(self) -> Tensor:
        """(n, o) for every original token, the last layer's token that it is in (latest pass)."""
        return self._passed().group

    @property
    def size(self) -> Tensor:
        """(n, k) how many original tokens each of the last layer's represents (latest pass)."""
        return self._passed().size

    @property
    def ran(self) -> bool:
        """Whether any picture has passed through the encoder under this reduction."""
        return self._latest is not None

    @property
    def report(self) -> EncoderReport:
        """Tokens after every layer, and FLOPs, of the latest pass."""
        merged = self._passed()
        n, o = merged.group.shape
        short, whole = (
            sum(
                self._flops(layer, entering, leaving, merged.pairs(i)[which])
                for i, (layer, entering, leaving) in enumerate(
                    zip(self.tower.layers, [o, *counts], counts, strict=False)
                )
            )
            for which, counts in enumerate((merged.counts, (o,) * len(merged.counts)))
        )
        tokens = list(merged.counts)
        blocks = len(merged.blocks[0]) if isinstance(merged, PackedMerged) else None
        return EncoderReport(n, o, tokens, n * short, n * whole, bool(merged.plans), blocks)

    def _flops(self, layer: Any, entering: int, leaving: int, pairs: int) -> int:
        norm, *mlp = self.tower.mlp(layer)
        within = sum(x.numel() for part in mlp for x in part.parameters() if x.dim() == 2)
        rest = sum(x.numel() for x in layer.parameters() if x.dim() == 2) - within
        width = int(norm.weight.shape[0])
        total: int = rest * entering + 2 * pairs * width + within * leaving
        return 2 * total

    def _passed(self) -> Merged:
        if self._latest is None:
            raise RuntimeError("no picture has passed through the encoder under this reduction")
        return self._latest

    def _remember(self, merged: Merged) -> None:
        self.applied = self.applied or bool(merged.plans)
        self._latest = merged
        if self._tell is not None:
            self._tell(merged)
