"""A schedule as something to paste or to choose: command-line words, an option file, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.errors import BadOption
from tokenreduce.files import write_text
from tokenreduce.scheduler import Scheduler, schedulers
from tokenreduce.schedulers import Explicit


def words(scheduler: Scheduler, strategy: str) -> list[str]:
    """What chooses a strategy and this schedule on the command line; defaults are left out."""
    changed = schedulers.to_dict(scheduler, defaults=False)
    options = [f"scheduler.{key}={spelled(value)}" for key, value in changed["options"].items()]
    return [f"strategy={strategy}", f"scheduler={changed['name']}", *options]


def check_name(name: str, option: str = "preset") -> None:
    """Refuses a name that no option file can have.

    option: where the name was given, for the message.

    Raises:
        ValueError: other characters than letters, digits, `_` and `-`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BadOption(
            f"{option}={name!r} is no name for an option: it must be made of letters, digits, "
            "_ and -"
        )


def schedule_of(stops: Sequence[tuple[int, float]]) -> Explicit:
    """The scheduler with these layers and shares."""
    return Explicit(tuple(layer for layer, _ in stops), tuple(keep for _, keep in stops))


def stops_of(scheduler: Scheduler, depth: int) -> tuple[tuple[int, float], ...]:
    """Layers and shares of a scheduler for a decoder of `depth` layers."""
    return tuple((stop.layer, stop.keep) for stop in scheduler.stops(depth))


def write_preset(
    folder: Path,
    name: str,
    schedule: Scheduler | Sequence[tuple[int, float]],
    comments: Iterable[str] = (),
) -> Path:
    """Writes `folder/scheduler/<name>.yaml`, the option `scheduler=<name>` under that config dir.

    Args:
        folder: for `--config-dir`.
        name: of the option.
        schedule: a scheduler, or its stops as layers and shares.
        comments: lines at the top of the file.

    Raises:
        ValueError: as `check_name`.
    """
    check_name(name)
    scheduler = schedule if isinstance(schedule, Scheduler) else schedule_of(schedule)
    path = folder / "scheduler" / f"{name}.yaml"
    rows = [f"# {' '.join(line.split())}" for line in comments]
    rows += [f"{key}: {spelled(value, ', ')}" for key, value in schedulers.node(scheduler).items()]
    return write_text(path, "\n".join(rows) + "\n")


def load_schedule(path: str | Path) -> Scheduler:
    """The scheduler that an option file describes.

    Raises:
        ValueError: no such file, or one without a name.
        KeyError: an unknown name.
        TypeError: an option that the scheduler does not have.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise BadOption(f"no file {str(path)!r}: give the path of a schedule such as profiled.yaml")
    options: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(options, dict) or "name" not in options:
        raise BadOption(f"{str(path)!r} names no scheduler: it needs a line such as name: explicit")
    made: Scheduler = schedulers.parse(options)
    return made


def spelled(value: Any, between: str = ",") -> str:
    """A value as YAML and Hydra read it; a word of the command line has no space in it."""
    if isinstance(value, Mapping):
        parts = (f"{key}:{between[1:]}{spelled(one, between)}" for key, one in value.items())
        return f"{{{between.join(parts)}}}"
    if isinstance(value, tuple | list):
        return f"[{between.join(spelled(one, between) for one in value)}]"
    return "null" if value is None else str(value)
