"""A reduction inside a plain vision encoder: a classifier, or a tower without a language model.

Shapes: n pictures, o tokens that the encoder begins with (class tokens first), k left at its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokenreduce.engine.merging import Merged, Merging
from tokenreduce.engine.packed import PackedMerged, PackedMerging
from tokenreduce.errors import ReductionWarning
from tokenreduce.report import EncoderReport
from tokenreduce.scheduler import Scheduler, Stop
from tokenreduce.strategy import Strategy, TowerStrategy
from tokenreduce.tokens import Plan
from tokenreduce.tower import PackedTower, Tower


class EncoderReduction:
    """A strategy at work inside a plain vision encoder. A context manager; made by `reduce()`.

    Raises:
        TypeError: a strategy that cannot work inside a tower.
        ValueError: a stop beyond the encoder, or an encoder that is reduced already.
    """

    def __init__(
        self,
        model: nn.Module,
        tower: Tower,
        strategy: Strategy,
        scheduler: Scheduler | None = None,
        seed: int = 0,
        tell: Callable[[Merged], None] | None = None,
    ) -> None:
        if not isinstance(strategy, TowerStrategy):
            raise TypeError(
                f"{type(strategy).__name__} reduces at the input of decoder layers, and "
                f"{type(model).__name__} has none: inside a vision encoder a strategy must be a "
                "TowerStrategy, such as 'tome'"
            )
        self.model, self.tower, self.strategy = model, tower, strategy
        self.scheduler, self.seed = scheduler, seed
        self._latest: Merged | None = None
        self._tell = tell
        self._applied = False
        depth = len(tower.layers)
        self._stops = () if scheduler is None else scheduler.stops(depth)
        self._check(depth)
        self._merging = self._apply()

    def _apply(self) -> Merging:
        """Puts every hook on, or none."""
        how = (self.strategy, self.counts, self._remember, self.seed)
        if isinstance(self.tower, PackedTower):
            return PackedMerging(self.tower, *how)
        return Merging(self.tower, *how)

    def counts(self, tokens: int) -> tuple[int, ...]:
        """Tokens behind each layer, for an encoder that begins with so many; nothing runs.

        The strategy's own counts, or those of the scheduler: shares of the patches.
        """
        depth, fixed = len(self.tower.layers), self.tower.classes
        if self.scheduler is None:
            return self.strategy.counts(depth, tokens, fixed)
        left, counts = tokens, []
        shares = {stop.layer: stop for stop in self._stops}
        for i in range(depth):
            if i in shares:
                left = min(left, fixed + max(shares[i].count(tokens - fixed), 1))
            counts.append(left)
        return tuple(counts)

    @property
    def stops(self) -> tuple[Stop, ...]:
        """The scheduler's stops: between attention and MLP of these layers. None of its own."""
        return self._stops

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
        """(n, k) how many original tokens each of the last layer's stands for (latest pass)."""
        return self._passed().size

    @property
    def ran(self) -> bool:
        """Whether any picture has passed through the encoder under this reduction."""
        return self._latest is not None

    @property
    def report(self) -> EncoderReport:
        """Tokens behind every layer, and FLOPs, of the latest pass."""
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

    def remove(self) -> None:
        """Takes every hook off: the model is as it was. Warns when nothing was ever merged."""
        if self._merging.remove() and not self._applied and self._asks():
            warnings.warn(
                "the reduction was removed without having reduced anything: no picture passed "
                "through the encoder, or none had tokens to merge",
                ReductionWarning,
                stacklevel=2,
            )

    def __enter__(self) -> EncoderReduction:
        if not self._merging.handles:  # removed before: a second block applies it again
            self._applied = False
            self._merging = self._apply()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._applied = True  # the error says enough
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> EncoderReduction:
        return self

    def __repr__(self) -> str:
        state = "" if self._merging.handles else ", removed"
        return f"EncoderReduction({self.strategy}, {self.scheduler}{state})"

    def _asks(self) -> bool:
        many = 1 << 16
        return self.counts(many)[-1] < many

    def _check(self, depth: int) -> None:
        for stop in self._stops:
            if not 0 <= stop.layer < depth:
                raise ValueError(
                    f"layer {stop.layer} is outside an encoder of {depth} layers: "
                    f"use 0 to {depth - 1}"
                )

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
        self._applied = self._applied or bool(merged.plans)
        self._latest = merged
        if self._tell is not None:
            self._tell(merged)
