"""A run against an earlier one: refuses what cannot be compared, flags what has become slower."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tokenreduce.errors import BadOption
from tokenreduce.files import named, parse_json

Row = Mapping[str, Any]
KEY = ("strategy", "stops", "positions", "tower", "visual_tokens", "text_tokens", "batch")
"""What makes two rows the same measurement."""
TIMED = ("prefill", "decode_step")


def read(path: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an earlier run of the same model.

    Raises:
        ValueError: no such file, not the record of a benchmark, or one of another model.
    """
    file = named(path, "task.against")
    try:
        record = parse_json(file.read_bytes())
        before = dict(record["subject"])
        list(record["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadOption(
            f"task.against={path} is not the result.json of a task=benchmark "
            f"({type(error).__name__}): give the file that such a run has written"
        ) from None
    other = [
        f"{name} {before.get(name)!r}, now {value!r}"
        for name, value in identity.items()
        if before.get(name) != value
    ]
    if other:
        raise BadOption(
            f"task.against={path} is of another model ({'; '.join(other)}): "
            "times of different models are not compared"
        )
    return dict(record)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two runs did not have in common: device, threads, versions; for a warning."""
    found = []
    for part in ("machine", "versions"):
        old, new = before.get(part) or {}, now.get(part) or {}
        found += [
            f"{name} {old.get(name)}, now {new.get(name)}"
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ]
    if before.get("clock") != now.get("clock"):
        found.append(f"clock {before.get('clock')}, now {now.get('clock')}")
    return found


def compare(
    before: Mapping[str, Any], rows: Iterable[Row], tolerance: float
) -> list[dict[str, Any]]:
    """Every measurement that both runs have: now over then, of the times and of the ratios.

    `ms` is the ratio of the reduced median times, `ratio` that of the time ratios to the unreduced
    model, which another device or a busy one disturbs less. Slower is what exceeds 1 by more than
    the tolerance: `absolute` by the one, `relative` by the other.

    Raises:
        ValueError: the runs have no measurement in common.
    """
    then = {_key(row): row for row in before["rows"]}
    found = []
    for row in rows:
        old = then.get(_key(row))
        for name in TIMED if old is not None else ():
            if name not in row or name not in old:  # type: ignore[operator]
                continue
            found.append(_compared(name, row, old, tolerance))  # type: ignore[arg-type]
    if not found:
        raise BadOption(
            "task.against: the two runs have no measurement in common (strategy, stops, visual "
            "tokens, batch): repeat the command of the earlier one"
        )
    return found


def _compared(name: str, row: Row, old: Row, tolerance: float) -> dict[str, Any]:
    new, past = row[name], old[name]
    ms = new["reduced"]["median_ms"] / past["reduced"]["median_ms"]
    ratio = new["ratio"]["median_of_pairs"] / past["ratio"]["median_of_pairs"]
    return {
        **{key: row[key] for key in KEY},
        "measure": name,
        "ms": ms,
        "ratio": ratio,
        "ratio_then": past["ratio"]["median_of_pairs"],
        "ratio_now": new["ratio"]["median_of_pairs"],
        "slower": [
            kind for kind, x in (("absolute", ms), ("relative", ratio)) if x > 1 + tolerance
        ],
    }


def _key(row: Row) -> str:
    return json.dumps([row[name] for name in KEY])
