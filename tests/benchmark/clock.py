"""Clocks: CPU time of this process (one thread), wall time beside it, and the engine's own share.

On a shared machine the CPU time of the process is what the work took; wall time is what it had to
wait as well. On a GPU work is asked for, not done, so there the clock is wall time between
synchronisations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmark.sizes import DEVICE
from tokenreduce.engine.handover import Handover
from tokenreduce.engine.hooks import Hook


def synchronise() -> None:
    """Waits until what was asked for is done."""
    if DEVICE != "cpu":
        torch.cuda.synchronize()


def now() -> float:
    """Seconds of the judging clock."""
    synchronise()
    return time.process_time() if DEVICE == "cpu" else time.perf_counter()


CLOCK = "process CPU time" if DEVICE == "cpu" else "wall time, synchronised"


@dataclass
class Times:
    """Seconds of one thing over the rounds, by the judging clock and by the wall."""

    clock: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], Any]) -> Any:
        """Calls, and notes what it took."""
        wall, start = time.perf_counter(), now()
        result = call()
        self.clock.append(now() - start)
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
    pairs = [a / b for a, b in zip(ours.clock, theirs.clock, strict=True)]
    return {
        "of_minima": min(ours.clock) / min(theirs.clock),
        "of_medians": statistics.median(ours.clock) / statistics.median(theirs.clock),
        "median_of_pairs": statistics.median(pairs),
        "wall_of_minima": min(ours.wall) / min(theirs.wall),
    }


class Engine:
    """Adds up what runs inside tokenreduce's hooks: deciding, gathering, bookkeeping, restoring.

    Some of it is the layers' own work: keys that a score has projected are handed to the layer,
    which then does not project them. `handed` lists these projections and their outputs' shapes.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.handed: list[tuple[nn.Module, tuple[int, ...]]] = []

    def read(self) -> float:
        """Seconds so far; a timer that only the engine's own work moves."""
        return self.seconds

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts inside the block."""
        plain, made = Hook.__call__, Handover.__init__

        def timed(hook: Hook, *args: Any) -> Any:
            start = now()
            try:
                return plain(hook, *args)
            finally:
                self.seconds += now() - start

        def noted(handover: Handover, projection: nn.Module, keys: Tensor) -> None:
            self.handed.append((projection, tuple(keys.shape)))
            made(handover, projection, keys)

        Hook.__call__ = timed  # type: ignore[method-assign]
        Handover.__init__ = noted  # type: ignore[method-assign]
        try:
            yield
        finally:
            Hook.__call__ = plain  # type: ignore[method-assign]
            Handover.__init__ = made  # type: ignore[method-assign]

    @torch.inference_mode()
    def spared(self, rounds: int = 5) -> float:
        """Seconds that the layers would take for the projections in `handed`, at their fastest."""
        total = 0.0
        for projection, (b, length, _) in self.handed:
            weight: Tensor = projection.weight
            x = torch.randn(b, length, weight.shape[1], device=weight.device, dtype=weight.dtype)
            times = Times()
            for _ in range(rounds):
                times.measure(lambda projection=projection, x=x: projection(x))
            total += min(times.clock)
        return total


ENGINE = Engine()
