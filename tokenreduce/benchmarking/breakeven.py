"""From how many visual tokens on a reduction is worth its work on this device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Measure = Callable[[int], dict[str, Any]]
STEPS = 4
"""Counts that are tried between the last that does not pay and the first that does."""
NEAR = 1.1
"""Neighbours whose ratio is below this are not told apart any more."""


@dataclass(frozen=True)
class BreakEven:
    """What was measured, and the number that follows.

    Attributes:
        tokens: the smallest measured count from which on the reduction pays; None if none does.
        least: whether it pays at the smallest count that was asked for already.
        rows: for every count `visual_tokens`, `ratio` (median of pairs), `interval`, `pays`.
    """

    tokens: int | None
    least: bool
    rows: list[dict[str, Any]]

    def advice(self) -> str:
        """One sentence with the setting that follows."""
        counts = [row["visual_tokens"] for row in self.rows]
        if self.tokens is None:
            return (
                f"break-even: not within {counts[0]} to {counts[-1]} visual tokens: measure more, "
                f"or set min_tokens={counts[-1] + 1}"
            )
        if self.least:
            return (
                f"break-even: it pays from the fewest measured on, {self.tokens} visual tokens: "
                f"set min_tokens={self.tokens}"
            )
        return (
            f"break-even: below {self.tokens} visual tokens it does not pay here: "
            f"set min_tokens={self.tokens}"
        )


def find(counts: Sequence[int], measure: Measure, steps: int = STEPS) -> BreakEven:
    """Measures the counts, then halves the gap in which the reduction begins to pay.

    It pays where the whole interval of the time ratio, reduced over unreduced, is below 1, at this
    count and at every larger one that was measured.

    Args:
        counts: visual tokens, at least one.
        measure: of a count, the `ratio` and its `interval`.
        steps: further counts at most.
    """
    rows = {n: _judged(n, measure(n)) for n in sorted(set(counts))}
    for _ in range(steps):
        first = smallest(rows)
        below = max((n for n in rows if first is not None and n < first), default=None)
        if first is None or below is None or first <= max(below + 1, NEAR * below):
            break
        middle = round(math.sqrt(below * first))
        middle = min(max(middle, below + 1), first - 1)
        rows[middle] = _judged(middle, measure(middle))
    first = smallest(rows)
    return BreakEven(first, first == min(rows), [rows[n] for n in sorted(rows)])


def smallest(rows: dict[int, dict[str, Any]]) -> int | None:
    """The smallest count from which on all pay."""
    found = None
    for n in sorted(rows, reverse=True):
        if not rows[n]["pays"]:
            break
        found = n
    return found


def _judged(visual: int, row: dict[str, Any]) -> dict[str, Any]:
    return {"visual_tokens": visual, **row, "pays": row["interval"][1] < 1}
