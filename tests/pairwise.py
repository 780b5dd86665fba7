"""Products of parameters by pairs: every two values that can meet do, and `--full` has them all."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any]) -> list[Any]:
    """The product of some values, as parameters; rows that add no pair of values are `full`.

    axes: the values of each parameter, in order.
    """
    return pairs_of(product(*map(list, axes)))


def in_turn(*axes: Iterable[Any]) -> list[Any]:
    """The same with less by default: every value once at least, with one of each other axis.

    axes: the values of each parameter, in order.
    """
    lists = [*map(list, axes)]
    turns = range(max(map(len, lists)))
    met = {tuple(str(values[n % len(values)]) for values in lists) for n in turns}
    return [
        pytest.param(*row, marks=[] if tuple(map(str, row)) in met else [pytest.mark.full])
        for row in product(*lists)
    ]


def pairs_of(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The same of rows that are not the whole of a product."""
    given = list(rows)
    places = [{(i, j, str(a), str(b)) for (i, a), (j, b) in met(row)} for row in given]
    left, kept = set().union(*places), set()
    while left:
        best = max(range(len(given)), key=lambda n: len(places[n] & left))
        left -= places[best]
        kept.add(best)
    return [
        pytest.param(*row, marks=[] if n in kept else [pytest.mark.full])
        for n, row in enumerate(given)
    ]


def met(row: tuple[Any, ...]) -> Iterable[Any]:
    """The pairs of a row's places and values."""
    return combinations(enumerate(row), 2)
