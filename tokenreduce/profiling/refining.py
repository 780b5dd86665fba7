"""Measures the most promising schedules, and looks around the best of them.

That losses add up is an assumption; what decides is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tokenreduce.errors import BadOption
from tokenreduce.profiling.cells import Measurement
from tokenreduce.profiling.planning import topped
from tokenreduce.profiling.prices import CostTable, Stops
from tokenreduce.profiling.sensitivity import Sensitivity


def refine(
    measure: Callable[[Stops], Measurement],
    starts: Iterable[Stops],
    losses: Sensitivity,
    costs: CostTable,
    budget: float,
    by: str = "jsd",
    stops: int = 4,
    trials: int = 12,
    step: float = 1 / 24,
) -> list[Measurement]:
    """The measured schedules within the budget, the best first.

    All of `starts` are measured; then neighbours of the best so far, the most promising first,
    each of which takes its place where it is better.

    Args:
        measure: of a schedule.
        starts: schedules.
        losses: what one stop costs.
        costs: what layers cost.
        budget: share of the unreduced FLOPs.
        by: the measure that decides.
        stops: the most of them.
        trials: neighbours that are measured.
        step: by which a neighbour's share differs.
    """
    tried = {way: measure(way) for way in starts if costs.share(way) <= budget}
    if not tried:
        raise BadOption(f"none of the schedules to start from costs at most {budget:.4g}")

    def loss(cell: Measurement) -> tuple[float, float]:
        return cell.loss(by), costs.share(cell.stops)

    # losses are predicted at measured layers alone: another schedule competes without neighbours
    known = [cell for way, cell in tried.items() if {layer for layer, _ in way} <= {*losses.layers}]
    if not known:
        return sorted(tried.values(), key=loss)
    best = min(known, key=loss)
    for _ in range(trials):
        around = set(neighbours(best.stops, losses, costs, budget, stops, step)) - set(tried)
        if not around:
            break
        way = min(around, key=lambda way: (losses.predicted(way), way))
        tried[way] = measure(way)
        best = min(best, tried[way], key=loss)
    return sorted(tried.values(), key=loss)


def neighbours(
    way: Stops, losses: Sensitivity, costs: CostTable, budget: float, stops: int, step: float
) -> Iterator[Stops]:
    """Schedules one change away, within the budget and with as much of it as they can use."""
    for changed in _changed(way, losses, stops, step):
        layers = [layer for layer, _ in changed]
        keeps = [1.0, *(keep for _, keep in changed)]
        falls = keeps == sorted(keeps, reverse=True) and layers == sorted(set(layers))
        if changed and falls and keeps[-1] >= losses.keeps[0] and costs.share(changed) <= budget:
            filled = topped(changed, losses, costs, budget)
            if filled != way:
                yield filled


def _changed(way: Stops, losses: Sensitivity, stops: int, step: float) -> Iterator[Stops]:
    """A stop moved, its share changed, both at once, a stop taken out, or one put in."""
    places = losses.layers
    for i, (layer, keep) in enumerate(way):
        at = places.index(layer)
        for move in (-2, -1, 0, 1, 2):
            if not 0 <= at + move < len(places):
                continue
            for less in (-3, -2, -1, 0, 1):
                k = min(1.0, max(0.0, keep + less * step))
                yield (*way[:i], (places[at + move], k), *way[i + 1 :])
        yield (*way[:i], *way[i + 1 :])
    if len(way) < stops:
        for place in set(places) - {layer for layer, _ in way}:
            before = [keep for layer, keep in way if layer < place]
            after = [stop for stop in way if stop[0] > place]
            keep = before[-1] if before else 1.0
            for less in (1, 3):
                k = max(keep - less * step, after[0][1] if after else 0.0)
                yield (*way[: len(before)], (place, k), *after)
