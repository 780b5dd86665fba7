"""Rules that a target is solved with where none is named, and tokens that vanish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenreduce.scheduler import Scheduler, Stop

FEW = 0.01
"""Below this share of the visual tokens little of a picture can be left."""


def families(
    rule: str, options: Mapping[str, Any], depth: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The strategy's own rule, then pyramids that begin earlier: at layer 1, at the input.

    What the layers before the first stop cost is spent on every token: where a target leaves
    little beyond that, only an earlier stop leaves tokens to the later layers.
    """
    yield rule, dict(options)
    quarters = [depth // 4, depth // 2, 3 * depth // 4]
    for first in (1, 0):
        layers = [first, *(layer for layer in quarters if layer > first)]
        if "rounding" in options:
            yield "explicit", {"layers": layers, "rounding": options["rounding"]}
        else:
            yield "explicit", {"layers": layers}


def vanishing(scheduler: Scheduler, depth: int, visual: int) -> Stop | None:
    """The first stop that leaves fewer than `FEW` of the tokens; None where all leave more.

    A schedule that is meant to drop every token (`keep=0`) is no such case where it was asked for.
    """
    few: Sequence[Stop] = [
        stop for stop in scheduler.stops(depth) if stop.count(visual) < max(1, FEW * visual)
    ]
    return few[0] if few else None
