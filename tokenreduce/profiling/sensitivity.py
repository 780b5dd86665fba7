"""What one stop costs at every layer, and what that says of several.

A stop at layer l that lets the share k of the tokens on has the loss L(l, k), measured; between
measured shares the loss is on a straight line. Of several stops each is charged for what it takes
away there, on the assumption that losses add up:

    loss = sum_i max(0, L(l_i, k_i) - L(l_i, k_{i-1})),   k_0 = 1, L(l, 1) = 0

which is exact for one stop.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenreduce.checks import share
from tokenreduce.errors import BadOption
from tokenreduce.profiling.cells import Measurement
from tokenreduce.profiling.prices import Stops


@dataclass(frozen=True)
class Sensitivity:
    """The loss of one stop, by layer and share.

    Attributes:
        layers: where a stop was measured, ascending.
        keeps: shares that were measured, ascending, all below 1.
        loss: (layers, keeps), less is better; none at share 1.
    """

    layers: tuple[int, ...]
    keeps: tuple[float, ...]
    loss: Mapping[tuple[int, float], float]

    def at(self, layer: int, keep: float) -> float:
        """The loss of a stop at a measured layer with any share from the smallest measured to 1."""
        known = (*self.keeps, 1.0)
        upper = min(bisect_right(known, keep), len(known) - 1)
        low, high = known[upper - 1], known[upper]
        a = self.loss[layer, low]
        b = 0.0 if high == 1.0 else self.loss[layer, high]
        return a + (b - a) * (keep - low) / (high - low)

    def step(self, layer: int, before: float, after: float) -> float:
        """What is lost where the share falls from `before` to `after` at a layer."""
        return max(0.0, self.at(layer, after) - self.at(layer, before))

    def predicted(self, stops: Stops) -> float:
        """The loss of several stops, if losses add up."""
        total, before = 0.0, 1.0
        for layer, keep in stops:
            total += self.step(layer, before, keep)
            before = keep
        return total


def sensitivity(
    measure: Callable[[Stops], Measurement],
    layers: Iterable[int],
    keeps: Sequence[float],
    by: str = "jsd",
) -> Sensitivity:
    """Measures one stop at every layer with every share.

    Args:
        measure: of a schedule; `ScheduleEvaluator.measure`, or one that remembers.
        layers: where.
        keeps: shares below 1.
        by: which of a cell's measures is the loss; it counts from the whole model's.

    Raises:
        ValueError: no layer, no share, or one that is not below 1.
    """
    rows, shares = sorted(set(layers)), sorted({share(k, "each of keeps") for k in keeps})
    if not rows or not shares or shares[-1] >= 1:
        raise BadOption(
            f"a profile needs layers and shares below 1, not layers={rows} and keeps={shares}"
        )
    whole = measure(()).loss(by)
    loss = {
        (layer, keep): measure(((layer, keep),)).loss(by) - whole
        for layer in rows
        for keep in reversed(shares)
    }
    return Sensitivity(tuple(rows), tuple(shares), loss)
