"""A schedule as an option file of the command line, and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tokenreduce.errors import BadOption
from tokenreduce.files import whole
from tokenreduce.profiling.prices import Stops
from tokenreduce.scheduler import Scheduler, schedulers
from tokenreduce.schedulers import Explicit


def schedule_of(stops: Stops) -> Explicit:
    """The scheduler with these layers and shares."""
    return Explicit([layer for layer, _ in stops], [keep for _, keep in stops])  # type: ignore[arg-type]


def write_preset(folder: Path, name: str, stops: Stops, comments: Iterable[str] = ()) -> Path:
    """Writes `folder/scheduler/<name>.yaml`, the option `scheduler=<name>` under that config dir.

    Raises:
        ValueError: as `check_name`.
    """
    check_name(name)
    path = folder / "scheduler" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        *(f"# {' '.join(line.split())}" for line in comments),
        "name: explicit",
        f"layers: {[layer for layer, _ in stops]}",
        f"keeps: {[keep for _, keep in stops]}",
        "rounding: nearest",
        "at_least: null",
    ]
    with whole(path) as draft:
        draft.write_text("\n".join(lines) + "\n")
    return path


def check_name(name: str) -> None:
    """Refuses what cannot name an option.

    Raises:
        ValueError: other than letters, digits and `_`.
    """
    if not name.isidentifier():
        raise BadOption(f"preset={name!r} is no name for an option: use letters, digits and _")


def load_schedule(path: str | Path) -> Scheduler:
    """The scheduler that an option file describes.

    Raises:
        ValueError: no such file, or one without a name.
        KeyError: an unknown name.
        TypeError: an option that the scheduler does not have.
    """
    file = Path(path)
    if not file.is_file():
        raise BadOption(f"no file {str(path)!r}: give the path of a schedule such as profiled.yaml")
    options: Any = yaml.safe_load(file.read_text())
    if not isinstance(options, dict) or "name" not in options:
        raise BadOption(f"{str(path)!r} names no scheduler: it needs a line such as name: explicit")
    made: Scheduler = schedulers.build(options.pop("name"), **options)
    return made
