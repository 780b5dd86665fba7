"""Clocks: CPU time of this process where one thread works, else wall time between synchronisations.

On a shared machine the CPU time of a process is what its work took; wall time is what it had to
wait as well. Several threads add their times up, and on a GPU work is asked for, not done: there
the clock is wall time, synchronised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import binom

LEVEL = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class Clock:
    """Seconds of work on a device.

    `wall` asks for wall time where CPU time could be had.
    """

    device: torch.device
    wall: bool = False

    @property
    def by_process(self) -> bool:
        """Whether CPU time of the process is what the work takes."""
        return self.device.type == "cpu" and not self.wall and torch.get_num_threads() == 1

    @property
    def name(self) -> str:
        """What is read, for records."""
        if self.by_process:
            return "process CPU time"
        return "wall time" if self.device.type == "cpu" else "wall time, synchronised"

    def now(self) -> float:
        """Seconds, once what was asked for is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.process_time() if self.by_process else time.perf_counter()


@dataclass
class Times:
    """Seconds of one thing over the rounds, by the judging clock and by the wall."""

    by: Clock
    clock: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], Any]) -> Any:
        """Calls, and notes what it took."""
        start = self.by.now()
        wall = time.perf_counter()
        result = call()
        self.clock.append(self.by.now() - start)
        self.wall.append(time.perf_counter() - wall)
        return result

    def forget(self) -> None:
        """Drops the rounds so far: they warmed up."""
        self.clock.clear()
        self.wall.clear()

    def summary(self) -> dict[str, float]:
        """Milliseconds."""
        return {
            "min_ms": 1e3 * min(self.clock),
            "median_ms": 1e3 * statistics.median(self.clock),
            "wall_min_ms": 1e3 * min(self.wall),
            "wall_median_ms": 1e3 * statistics.median(self.wall),
        }


def paired(ours: Times, theirs: Times) -> dict[str, float]:
    """Ratios of two interleaved series: of the minima, of the medians, and the median of ratios."""
    pairs = ratios(ours, theirs)
    return {
        "of_minima": min(ours.clock) / min(theirs.clock),
        "of_medians": statistics.median(ours.clock) / statistics.median(theirs.clock),
        "median_of_pairs": statistics.median(pairs),
        "wall_of_minima": min(ours.wall) / min(theirs.wall),
    }


def ratios(ours: Times, theirs: Times) -> list[float]:
    """Round by round, one time over its neighbour's."""
    return [a / b for a, b in zip(ours.clock, theirs.clock, strict=True)]


@dataclass(frozen=True)
class Interval:
    """Bounds of a median, and how sure they are where rounds are independent."""

    low: float
    high: float
    coverage: float


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The narrowest pair of order statistics that holds the median with probability `level`.

    No distribution is assumed: of n values, the r-th from either end leave the median outside
    with probability 2 P(B < r), B binomial of n and 1/2 (David and Nagaraja, Order Statistics,
    section 7.1). Five values or fewer reach no more than 94 %: then these are the extremes.
    """
    ordered, n = sorted(values), len(values)
    rank = max(1, int(binom.ppf((1 - level) / 2, n, 0.5)))
    outside = 2 * float(binom.cdf(rank - 1, n, 0.5))
    return Interval(ordered[rank - 1], ordered[n - rank], max(0.0, 1 - outside))


def coverage(n: int) -> float:
    """How surely the extremes of n values have the median between them: 0 for one value."""
    return max(0.0, 1 - 2.0 ** (1 - n))
