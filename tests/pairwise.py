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


def in_turn(first: Iterable[Any], *others: Iterable[Any]) -> list[Any]:
    """The same with less by default: every first value once, with the others' product in turn.

    first: the values of the first parameter.
    others: those of each further one.
    """
    values, beside = [*first], [*product(*map(list, others))]
    turns = range(max(len(values), len(beside)))
    met = {(n % len(values), n % len(beside)) for n in turns}
    return [
        pytest.param(value, *rest, marks=[] if (i, j) in met else [pytest.mark.full])
        for i, value in enumerate(values)
        for j, rest in enumerate(beside)
    ]


def pairs_of(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The same of rows that are not the whole of a product."""
    given = list(rows)
    return _fewest(
        given, [{(i, j, str(a), str(b)) for (i, a), (j, b) in met(row)} for row in given]
    )


def values_of(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """With less by default still: every value of every parameter once."""
    given = list(rows)
    return _fewest(given, [{(i, str(a)) for i, a in enumerate(row)} for row in given])


def _fewest(given: list[tuple[Any, ...]], places: list[set[Any]]) -> list[Any]:
    """The rows, those without which every place is met still `full`."""
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
