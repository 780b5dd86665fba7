"""The schedules that lose least within a budget, if losses of stops add up.

Dynamic programming over the layers: what is after a layer depends only on the share that is left,
on the stops that are used up, and on what was spent.
"""

from __future__ import annotations

from math import floor

from tokenreduce.checks import integer
from tokenreduce.errors import BadOption
from tokenreduce.profiling.prices import CostTable, Stops
from tokenreduce.profiling.sensitivity import Sensitivity

Path = tuple[int, float, Stops]
"""MACs so far, loss so far, stops so far."""
WIDTH = 128
"""Paths that are followed per share and number of stops; the cheapest of each price band stays."""
DIGITS = 4
"""Of a share, as it is written."""


def candidates(
    losses: Sensitivity, costs: CostTable, budget: float, stops: int = 4, grid: int = 24
) -> list[tuple[float, Stops]]:
    """Schedules within a budget, by predicted loss: the best for each last share and number.

    Args:
        losses: what one stop costs.
        costs: what layers cost.
        budget: share of the unreduced FLOPs.
        stops: the most of them.
        grid: shares that are tried, besides the measured ones: 1/grid, 2/grid, ...

    Raises:
        ValueError: a budget that even one early stop to the smallest share does not meet.
    """
    integer(stops, "stops", least=1)
    integer(grid, "grid", least=1)
    limit = budget * costs.full
    _check(losses, costs, budget)
    least = losses.keeps[0]
    levels = sorted(
        {k for k in (i / grid for i in range(grid)) if k >= least} | set(losses.keeps), reverse=True
    )
    paths: dict[tuple[float, int], list[Path]] = {(1.0, 0): [(0, 0.0, ())]}
    for layer in range(costs.depth):
        after: dict[tuple[float, int], list[Path]] = {}
        left = (costs.depth - layer - 1) * costs.layer(least)
        for (keep, used), rows in paths.items():
            nexts = [(keep, used, 0.0)]
            if layer in losses.layers and used < stops:
                steps = (k for k in levels if k < keep)
                nexts += [(k, used + 1, losses.step(layer, keep, k)) for k in steps]
            for k, number, lost in nexts:
                price, group = costs.layer(k), after.setdefault((k, number), [])
                way = () if k == keep else ((layer, k),)
                group += [
                    (spent + price, loss + lost, past + way)
                    for spent, loss, past in rows
                    if spent + price + left <= limit
                ]
        paths = {key: _frontier(rows, limit) for key, rows in after.items() if rows}
    best = [min(rows, key=lambda row: (row[1], row[0])) for rows in paths.values()]
    made = {topped(past, losses, costs, budget) for _, _, past in best}
    return sorted((losses.predicted(way), way) for way in made)


def topped(stops: Stops, losses: Sensitivity, costs: CostTable, budget: float) -> Stops:
    """The same stops with larger shares, where the budget has room.

    The stop whose larger share promises most comes first. Shares end after four digits, sooner
    where the counts of tokens are the same.
    """
    way = tuple((layer, floor(k * 10**DIGITS + 1e-6) / 10**DIGITS) for layer, k in stops)
    for _ in range(len(way)):
        more = [_raised(way, i, costs, budget) for i in range(len(way))]
        better = min(more, key=losses.predicted)
        if better == way:
            break
        way = better
    return _distinct(_short(way, costs))


def _raised(way: Stops, i: int, costs: CostTable, budget: float) -> Stops:
    """Stop `i` with the largest share that the budget and the stop before it allow."""
    layer, keep = way[i]
    most = way[i - 1][1] if i else 1.0
    low, high = round(keep * 10**DIGITS), floor(most * 10**DIGITS + 1e-6)
    while low < high:
        middle = (low + high + 1) // 2
        there = (*way[:i], (layer, middle / 10**DIGITS), *way[i + 1 :])
        low, high = (middle, high) if costs.share(there) <= budget else (low, middle - 1)
    return (*way[:i], (layer, low / 10**DIGITS), *way[i + 1 :])


def _short(way: Stops, costs: CostTable) -> Stops:
    """Every share with as few digits as give the same counts of tokens."""
    most = 1.0
    for i, (layer, keep) in enumerate(way):
        price = costs.layer(keep)
        same = (round(keep, digits) for digits in range(DIGITS))
        short = next((k for k in same if costs.layer(k) == price), keep)
        most = min(most, short)
        way = (*way[:i], (layer, most), *way[i + 1 :])
    return way


def _distinct(way: Stops) -> Stops:
    """Without stops at which nothing leaves."""
    keeps = [1.0, *(keep for _, keep in way)]
    return tuple(stop for stop, before in zip(way, keeps, strict=False) if stop[1] < before)


def _frontier(rows: list[Path], limit: float) -> list[Path]:
    """The paths that no other beats in both price and loss, one for each of `WIDTH` price bands."""
    kept: dict[int, Path] = {}
    lowest = float("inf")
    for row in sorted(rows):
        if row[1] < lowest:
            lowest = row[1]
            kept.setdefault(int(WIDTH * row[0] / limit), row)
            last = row
    kept[-1] = last  # the least loss of all, whatever its band has
    return list(dict.fromkeys(kept.values()))


def _check(losses: Sensitivity, costs: CostTable, budget: float) -> None:
    least = costs.share(((losses.layers[0], losses.keeps[0]),))
    if not 0 < budget < 1:
        raise BadOption(f"budget must lie between 0 and 1 of the unreduced FLOPs, not {budget!r}")
    if least > budget:
        raise BadOption(
            f"infeasible: the minimum is {least:.4g} of the unreduced FLOPs with one stop to "
            f"{losses.keeps[0]:g} at layer {losses.layers[0]}, and {budget:.4g} is asked for: "
            "profile earlier layers or smaller shares, or raise the budget"
        )
