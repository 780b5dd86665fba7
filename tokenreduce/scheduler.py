"""Where visual tokens are reduced, and to how many: depth and counts in, stops out.

Pure Python: no tensors. Layers count from 0 and mean "at the input of that layer"; shares are of
the ORIGINAL number of visual tokens and never compound.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from tokenreduce.registry import Registry, did_you_mean

Rounding = Literal["nearest", "floor", "ceil"]


@dataclass(frozen=True)
class Stop:
    """Reduce at the input of decoder layer `layer` to the share `keep` of the original tokens."""

    layer: int
    keep: float
    rounding: Rounding = "nearest"

    def count(self, n: int) -> int:
        """How many of `n` original tokens stay.

        `"nearest"` rounds `n * keep` half to even, as Python and FastV do; `"floor"` is
        `int(n * keep)` on the float product, as PyramidDrop does; `"ceil"` rounds up, after
        removing the float product's error below 1e-9.
        """
        product = n * self.keep
        if self.rounding == "floor":
            return int(product)
        if self.rounding == "ceil":
            return math.ceil(round(product, 9))
        return round(product)


class Scheduler(ABC):
    """Decides at which layers tokens are reduced and which share of them stays."""

    @abstractmethod
    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """The stops for a decoder of `depth` layers, in ascending order of layers.

        Args:
            depth: number of decoder layers.
            progress: how much of training is done, 0 to 1; 1 at inference.

        Raises:
            ValueError: a layer that the decoder does not have.
        """


schedulers: Registry[type[Scheduler]] = Registry("scheduler")
"""Every known scheduler: name -> class."""


def share(value: float, name: str) -> float:
    """`value` as a share between 0 and 1, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a share between 0 and 1, not {value!r}")
    return float(value)


def checked_rounding(value: str) -> Rounding:
    """`value` as a rounding rule, or a ValueError that lists the rules."""
    for rule in get_args(Rounding):
        if value == rule:
            return rule
    rules = get_args(Rounding)
    raise ValueError(
        f"no rounding rule {value!r}{did_you_mean(value, rules)} (known: {', '.join(rules)})"
    )


def layer_at(where: float, depth: int) -> int:
    """The layer that `where` means in a decoder of `depth` layers.

    An integer is a layer, a float below 1 a share of the depth (0.5 of 32 layers is layer 16).

    Raises:
        ValueError: the decoder has no such layer.
    """
    layer = int(depth * where) if isinstance(where, float) and 0 <= where < 1 else where
    if isinstance(layer, bool) or int(layer) != layer or not 0 <= layer < depth:
        raise ValueError(
            f"layer {where!r} is outside a decoder of {depth} layers: "
            f"use 0 to {depth - 1}, or a share of the depth such as 0.5"
        )
    return int(layer)


def ordered(stops: Iterable[Stop]) -> tuple[Stop, ...]:
    """`stops`, checked to ascend in layers and never to grow.

    Raises:
        ValueError: two stops at one layer, layers out of order, or a share above an earlier one.
    """
    rows = tuple(stops)
    for earlier, later in zip(rows, rows[1:], strict=False):
        if later.layer <= earlier.layer:
            raise ValueError(
                f"stops must be at ascending layers, but layer {later.layer} follows "
                f"layer {earlier.layer}"
            )
        if later.keep > earlier.keep:
            raise ValueError(
                f"dropped tokens do not come back: the share {later.keep:g} at layer "
                f"{later.layer} is above {earlier.keep:g} at layer {earlier.layer}"
            )
    return rows
