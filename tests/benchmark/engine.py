"""How much of a reduced pass runs inside tokenreduce's own hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.capture import KeyReuse
from tokenreduce.engine.hooks import Hook
from tokenreduce.inference.clock import Clock, Times


class Engine:
    """Adds up what runs inside tokenreduce's hooks: deciding, gathering, bookkeeping, restoring.

    Some of it is the layers' own work: keys that a score has projected are handed to the layer,
    which then does not project them. `handed` lists these projections and their outputs' shapes.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds = 0.0
        self.handed: list[tuple[nn.Module, tuple[int, ...]]] = []

    def read(self) -> float:
        """Seconds so far; a timer that only the engine's own work moves."""
        return self.seconds

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts inside the block."""
        plain, made = Hook.__call__, KeyReuse.__init__

        def timed(hook: Hook, *args: Any) -> Any:
            start = self.clock.now()
            try:
                return plain(hook, *args)
            finally:
                self.seconds += self.clock.now() - start

        def noted(reuse: KeyReuse, projection: nn.Module, keys: Tensor) -> None:
            self.handed.append((projection, tuple(keys.shape)))
            made(reuse, projection, keys)

        Hook.__call__ = timed  # type: ignore[method-assign, assignment]
        KeyReuse.__init__ = noted  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Hook.__call__ = plain  # type: ignore[method-assign]
            KeyReuse.__init__ = made  # type: ignore[method-assign]

    @torch.inference_mode()
    def spared(self, rounds: int = 5) -> float:
        """Seconds that the layers would take for the projections in `handed`, at their fastest."""
        total = 0.0
        for projection, (b, length, _) in self.handed:
            weight: Any = projection.weight
            x = torch.randn(b, length, weight.shape[1], device=weight.device, dtype=weight.dtype)
            times = Times(self.clock)
            for _ in range(rounds):
                times.measure(partial(projection, x))
            total += min(times.clock)
        return total
