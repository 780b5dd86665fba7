"""Options of a profile that have no default of their kind, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenreduce.errors import BadOption


def check(task: Mapping[str, Any]) -> None:
    """Refuses layers, shares, a budget or a number of stops of another kind or range.

    Raises:
        BadOption: in one line, with the value and an example.
    """
    if task["layers"] is not None and not _several(task["layers"], int):
        raise BadOption(
            f"task.layers must be a list of whole numbers such as [2,4,6], or null for every "
            f"layer, not {_said(task['layers'])}"
        )
    if not _several(task["keeps"], float):
        raise BadOption(
            f"task.keeps must be a list of shares from 0 to 1 such as [0.5,0.25], not "
            f"{_said(task['keeps'])}"
        )
    if task["budget"] is not None and not _number(task["budget"], float):
        raise BadOption(
            f"task.budget={task['budget']}: the share of the unreduced FLOPs that the schedule may "
            "take, above 0 and up to 1, or null for that of the scheduler"
        )
    if task["stops"] is not None and not (_number(task["stops"], int) and task["stops"]):
        raise BadOption(
            f"task.stops={task['stops']}: the most stops of the schedule, a whole number of 1 or "
            "more, or null for as many as the scheduler has"
        )


def _several(value: Any, kind: type) -> bool:
    given = value if isinstance(value, list | tuple) else ()
    return bool(given) and all(_number(one, kind) for one in given)


def _number(value: Any, kind: type) -> bool:
    """Whether a value is a whole number of 0 or more, or for `float` a share from 0 to 1."""
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, int | float) and 0 <= value <= 1


def _said(value: Any) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)
