"""What schedulers around another scheduler share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tokenreduce.errors import Incompatible
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.schedulers.pyramid import Pyramid

TARGET = Pyramid()
"""What is wrapped where nothing is named."""


def named(target: Scheduler | Mapping[str, Any] | str) -> Scheduler:
    """The scheduler that is meant by an instance, a name, or a mapping with `name` and options.

    Raises:
        KeyError: an unknown name.
        TypeError: options that it does not have, or something else altogether.
        ValueError: a mapping without a name, or an option that it refuses.
    """
    if isinstance(target, Scheduler):
        return target
    if not isinstance(target, str | Mapping):
        raise Incompatible(
            f"target is a scheduler, its name, or a mapping with `name` and options, not {target!r}"
        )
    built: Scheduler = schedulers.parse(target, "target")
    return built


def towards(stops: Iterable[Stop], part: float) -> tuple[Stop, ...]:
    """`stops` with shares only a `part` (0 to 1) of the way down from 1."""
    if part >= 1:
        return tuple(stops)  # to the bit
    return tuple(replace(stop, keep=1 - part * (1 - stop.keep)) for stop in stops)
