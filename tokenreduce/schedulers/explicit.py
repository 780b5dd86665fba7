"""Layers and shares, written out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from tokenreduce.checks import layer_or_share, sequence, share
from tokenreduce.errors import BadOption
from tokenreduce.scheduler import (
    Rounding,
    Scheduler,
    Stop,
    checked_floor,
    checked_rounding,
    layer_at,
    ordered,
    schedulers,
)


@schedulers.register("explicit")
@dataclass(frozen=True)
class Explicit(Scheduler):
    """Reduces at each of `layers` to the share of the original tokens next to it in `keeps`.

    Entries of `layers` are layers, or shares of the depth below 1. Lists are as good as tuples. Of
    several shares of the depth that are one layer of a shallow decoder, the last counts.

    Source of the defaults: the scripts of PyramidDrop (Cooperx521/PyramidDrop), `--layer_list
    '[8,16,24]' --image_token_ratio_list '[0.5,0.25,0.125]'`.

    Raises:
        ValueError: lists of unequal length or without entries, an entry that is no layer or no
            share, a share above an earlier one.
    """

    layers: tuple[int | float, ...] = (8, 16, 24)
    """Layers, or shares of the depth below 1."""
    keeps: tuple[float, ...] = (0.5, 0.25, 0.125)
    """Of the original tokens, one for each layer."""
    rounding: Rounding = "nearest"
    """nearest | floor | ceil; floor is the rule of the PyramidDrop code."""
    at_least: int | None = None
    """Tokens that a share above 0 leaves; null: 1, and 0 under floor."""

    def __post_init__(self) -> None:
        layers = tuple(layer_or_share(x, "each of layers") for x in sequence(self.layers, "layers"))
        keeps = tuple(share(x, "each of keeps") for x in sequence(self.keeps, "keeps"))
        if len(layers) != len(keeps):
            raise BadOption(
                f"layers={list(layers)} and keeps={list(keeps)} must be of one length, not "
                f"{len(layers)} and {len(keeps)}: give one share for each layer"
            )
        checked_rounding(self.rounding)
        checked_floor(self.at_least)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "keeps", keeps)
        fixed = [where for where in layers if isinstance(where, int)]
        if len(fixed) == len(layers):  # shares of the depth wait until it is known
            self.stops(depth=1 + max(fixed))

    def stops(self, depth: int, progress: float = 1.0) -> tuple[Stop, ...]:
        """One stop for each pair of a layer and a share."""
        layers = [layer_at(where, depth) for where in self.layers]
        rows = zip(self.layers, layers, self.keeps, strict=True)
        stops: list[Stop] = []
        for where, group in groupby(rows, key=lambda row: (isinstance(row[0], float), row[1])):
            keeps = [keep for _, _, keep in group]
            once = keeps[-1:] if where[0] and keeps == sorted(keeps, reverse=True) else keeps
            stops += [Stop(where[1], keep, self.rounding, self.at_least) for keep in once]
        return ordered(stops)
