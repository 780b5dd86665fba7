"""What schedulers around another scheduler share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tokenreduce.errors import BadOption, Incompatible
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
    if isinstance(target, str):
        target = {"name": target}
    if not isinstance(target, Mapping):
        raise Incompatible(
            f"target is a scheduler, its name, or a mapping with `name` and options, not {target!r}"
        )
    options = {str(key): value for key, value in target.items()}
    if "name" not in options:
        raise BadOption(
            f"target={options!r} has no name: say which scheduler it is "
            f"(known: {', '.join(schedulers)})"
        )
    built: Scheduler = schedulers.build(options.pop("name"), **options)
    return built


def towards(stops: Iterable[Stop], part: float) -> tuple[Stop, ...]:
    """`stops` with shares only a `part` (0 to 1) of the way down from 1."""
    if part >= 1:
        return tuple(stops)  # to the bit
    return tuple(replace(stop, keep=1 - part * (1 - stop.keep)) for stop in stops)
