"""The largest share whose prefill takes no more than so many milliseconds, found by measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokenreduce.errors import BadOption

Measure = Callable[[Sequence[float]], list[float]]
"""Milliseconds of a prefill with each of these shares, all taken in turn."""
NEAR = 0.1
"""A share is looked for no nearer to a measured one than this part of the gap."""


@dataclass
class Found:
    """What was measured, and the answer.

    Attributes:
        share: the largest measured share within the target.
        ms: of that share.
        unreduced: milliseconds of the unreduced model.
        points: every measured share and its milliseconds.
        clock: what was read.
    """

    share: float
    ms: float
    unreduced: float
    points: dict[float, float] = field(default_factory=dict)
    clock: str = ""


def find(
    target: float,
    unreduced: float,
    points: dict[float, float],
    measure: Measure,
    same: Callable[[float, float], bool],
    tries: int,
) -> Found:
    """The largest share within `target` milliseconds.

    Between the measured shares on either side of the target, the next one is where a straight line
    meets it; time is close to one in the tokens that are left.

    Args:
        target: in milliseconds.
        unreduced: of the model without a reduction.
        points: what has been measured already; the smallest share is the least that can be had.
        measure: for more.
        same: whether two shares keep the same tokens, so that nothing lies between.
        tries: how many more are measured at most.

    Raises:
        ValueError: the smallest share takes longer than the target.
    """
    points = dict(points)
    least = min(points)
    if points[least] > target:
        raise BadOption(
            f"infeasible: the minimum is {points[least]:.4g} ms with {least:g} as the share, of "
            f"{unreduced:.4g} ms unreduced, and {target:.4g} ms is asked for: stop at earlier "
            "layers, or raise the target"
        )
    if unreduced <= target:
        return Found(1.0, unreduced, unreduced, {**points, 1.0: unreduced})
    points[1.0] = unreduced
    for _ in range(tries):
        low, high = _around(points, target)
        if same(low, high):
            break
        part = (target - points[low]) / (points[high] - points[low])
        share = round(low + (high - low) * min(max(part, NEAR), 1 - NEAR), 4)
        if share in points:
            break
        (points[share],) = measure([share])
    low, _ = _around(points, target)
    return Found(low, points[low], unreduced, dict(sorted(points.items())))


def _around(points: dict[float, float], target: float) -> tuple[float, float]:
    """The largest share within the target, and the next measured one, which is not."""
    shares = sorted(points)
    low = max(share for share in shares if points[share] <= target)
    return low, shares[shares.index(low) + 1]
