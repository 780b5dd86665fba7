"""Checks of options: each gives the value back in its own kind, or says what it must be.

Every message names the option and the value, and what the value must be, in one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from tokenreduce.errors import BadOption, did_you_mean, short

T = TypeVar("T")

MOST = 10_000
"""Layers of a decoder, at most: a list of a million is a mistake that would take a minute."""


def share(value: Any, name: str) -> float:
    """`value` as a share between 0 and 1, or a ValueError that says `name` and the value."""
    if isinstance(value, bool) or not isinstance(value, Real) or not _within(value, 1):
        said = f"{short(value)}{_kind(value)}"
        raise BadOption(f"{name} must be a number between 0 and 1, not {said}")
    return float(value)


def integer(value: Any, name: str, least: int) -> int:
    """`value` as a whole number of at least `least`, or a ValueError that says `name` and it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise BadOption(
            f"{name} must be a whole number of at least {least}, not {short(value)}{_kind(value)}"
        )
    return int(value)


def integers(values: Any, name: str, least: int = 1) -> list[int]:
    """`values` as a list of whole numbers of at least `least`.

    Raises:
        ValueError: anything else, an empty list among it.
    """
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    fit = [n for n in listed if isinstance(n, int) and not isinstance(n, bool) and n >= least]
    if not listed or len(fit) < len(listed):
        raise BadOption(f"{name} must be a list of whole numbers such as [1,4], not {values!r}")
    return fit


def sequence(value: Any, name: str) -> tuple[Any, ...]:
    """`value`, a list from YAML or any other row of values, as a tuple.

    Raises:
        ValueError: a single number or a string, nothing in it, or more than `MOST` entries.
    """
    rows = None if isinstance(value, str | bytes) or not isinstance(value, Iterable) else value
    if rows is None or not (rows := tuple(rows)):
        raise BadOption(
            f"{name} must be a list with at least one entry, written [a, b], "
            f"not {short(value)}{_kind(value)}"
        )
    if len(rows) > MOST:
        raise BadOption(f"{name} has {len(rows):,} entries: no decoder has more than {MOST:,}")
    return rows


def one_of(value: Any, known: Iterable[T], kind: str) -> T:
    """The one of `known` that equals `value`, or a ValueError that lists them; `kind` is a noun."""
    names = list(known)
    for name in names:
        if value == name:
            return name
    raise BadOption(
        f"no {kind} {value!r}{did_you_mean(str(value), map(str, names))} "
        f"(known: {', '.join(map(str, names))})"
    )


def layer_or_share(value: Any, name: str = "layer") -> float:
    """`value` as a place in a decoder of any depth: a layer (0, 1, ...) or a share below 1.

    Raises:
        ValueError: neither of the two; 1.0 among them, which could be read as both.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral) and _within(value):
            return int(value)
        number = float(value) if _within(value) else math.nan
        if 0 <= number < 1:
            return number
        if number > 1 and number.is_integer():
            return int(number)  # 16.0, as a typed configuration hands over 16
    raise BadOption(
        f"{name} must be a layer (a whole number counting from 0) or a share of the depth "
        f"(0.5: half-way; below 1), not {short(value)}{_kind(value)}"
    )


def _within(value: Any, most: float = math.inf) -> bool:
    """Whether a number lies from 0 to `most`; one beyond all floats is compared as it is."""
    return bool(0 <= value <= most)


def _kind(value: object) -> str:
    """What is odd about a value that a configuration file has read as text or truth."""
    if isinstance(value, bool):
        return " (a truth value)"
    return " (text)" if isinstance(value, str) else ""
