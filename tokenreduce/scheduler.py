"""Where visual tokens are reduced, and to how many: depth and counts in, stops out.

Pure Python: no tensors. Layers count from 0 and mean "at the input of that layer"; shares are of
the ORIGINAL number of visual tokens and never compound.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from tokenreduce.checks import integer, layer_or_share, one_of, share
from tokenreduce.errors import BadOption
from tokenreduce.registry import Registry, short

Rounding = Literal["nearest", "floor", "ceil"]


@dataclass(frozen=True)
class Stop:
    """Reduce at the input of decoder layer `layer` to the share `keep` of the original tokens.

    A share above 0 leaves at least `at_least` tokens of a sample that has any, where the rounded
    share would be fewer (a picture of 4 tokens under `keep=0.098`). None means 1, and 0 under
    `rounding="floor"`: the code whose rule that is goes down to none.

    Raises:
        ValueError: a layer below 0, a share outside 0 to 1, an unknown rounding rule, a number of
            tokens below 0.
    """

    layer: int
    keep: float
    rounding: Rounding = "nearest"
    at_least: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", integer(self.layer, "a stop's layer", least=0))
        object.__setattr__(self, "keep", share(self.keep, "a stop's share"))
        checked_rounding(self.rounding)
        checked_floor(self.at_least)

    def count(self, n: int) -> int:
        """How many of `n` original tokens stay.

        `"nearest"` rounds `n * keep` half to even, as Python and FastV do; `"floor"` is
        `int(n * keep)` on the float product, as PyramidDrop does; `"ceil"` rounds up, after
        removing the float product's error below 1e-9.
        """
        rounded = self.rounded(n)
        return max(rounded, min(self.floor, n)) if self.keep > 0 else rounded

    @property
    def floor(self) -> int:
        """How many tokens a share above 0 leaves in any case."""
        if self.at_least is None:
            return 0 if self.rounding == "floor" else 1
        return self.at_least

    def rounded(self, n: int) -> int:
        """The share of `n` by the rounding rule alone."""
        product = n * self.keep
        if self.rounding == "floor":
            return int(product)
        if self.rounding == "ceil":
            return math.ceil(round(product, 9))
        return round(product)


def check_within(stops: Iterable[Stop], depth: int, what: str) -> None:
    """Refuses a stop beyond the last of `depth` layers of `what` (`"a decoder"`).

    Raises:
        ValueError: a layer that is not there.
    """
    for stop in stops:
        if stop.layer >= depth:
            raise BadOption(
                f"layer {stop.layer} is outside {what} of {depth} layers: use 0 to {depth - 1}"
            )


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


schedulers: Registry[type[Scheduler]] = Registry("scheduler", "tokenreduce.schedulers")
"""Every known scheduler: name -> class."""


def checked_floor(value: Any) -> None:
    """Refuses an `at_least` that is neither None nor a number of tokens."""
    if value is not None:
        integer(value, "at_least", least=0)


def checked_rounding(value: str) -> Rounding:
    """`value` as a rounding rule, or a ValueError that lists the rules."""
    known: tuple[Rounding, ...] = get_args(Rounding)
    return one_of(value, known, "rounding rule")


def layer_at(where: Any, depth: int, name: str = "layer") -> int:
    """The layer that `where` means in a decoder of `depth` layers.

    A whole number is a layer, a float below 1 a share of the depth, rounded down (0.5 of 32 layers
    is layer 16; the product is freed of the float error below 1e-9 first, so that 0.29 of 100
    layers is layer 29).

    Raises:
        ValueError: the decoder has no such layer.
    """
    spot = layer_or_share(where, name)
    found = int(round(depth * spot, 9)) if isinstance(spot, float) else spot
    if found >= depth:
        raise BadOption(
            f"{name} {short(where)} is outside a decoder of {depth} layers: "
            f"use 0 to {depth - 1}, or a share of the depth such as 0.5"
        )
    return int(found)


def between(first: Any, last: Any, every: int, depth: int) -> list[tuple[int, float]]:
    """The layers after `first` up to `last`, each with the part of the way done (0 to 1).

    A step is `every` layers; the last one is shorter where the distance asks for it, so that
    `last` is always there, with 1.

    Raises:
        ValueError: the decoder has no such layer, or `first` is not before `last`.
    """
    start, end = layer_at(first, depth, "first"), layer_at(last, depth, "last")
    if start >= end:
        raise BadOption(
            f"first must lie before last, but first={first!r} is layer {start} and last={last!r} "
            f"is layer {end} of {depth}: move them apart"
        )
    layers = [*range(start + every, end, every), end]
    return [(layer, (layer - start) / (end - start)) for layer in layers]


def ordered(stops: Iterable[Stop]) -> tuple[Stop, ...]:
    """`stops`, checked to ascend in layers and never to grow.

    Raises:
        ValueError: two stops at one layer, layers out of order, or a share above an earlier one.
    """
    rows = tuple(stops)
    for earlier, later in pairwise(rows):
        if later.layer <= earlier.layer:
            raise BadOption(
                f"stops must be at ascending layers, but layer {later.layer} follows "
                f"layer {earlier.layer}"
            )
        if later.keep > earlier.keep:
            raise BadOption(
                f"dropped tokens do not come back: the share {later.keep:g} at layer "
                f"{later.layer} is above {earlier.keep:g} at layer {earlier.layer}"
            )
    return rows
