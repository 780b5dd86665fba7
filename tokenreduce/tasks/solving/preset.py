"""A schedule as something to paste or to choose: command-line words, and an option file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import tokenreduce as tr
from tokenreduce.config import directory
from tokenreduce.errors import BadOption
from tokenreduce.files import whole


def options_of(scheduler: tr.Scheduler) -> dict[str, Any]:
    """The name and the options that make a schedule again."""
    values = dataclasses.asdict(scheduler)  # type: ignore[call-overload]
    return {"name": tr.schedulers.name_of(scheduler), **values}


def words(scheduler: tr.Scheduler, strategy: str) -> list[str]:
    """What chooses a strategy and this schedule on the command line; defaults are left out."""
    options = options_of(scheduler)
    name = options.pop("name")
    usual = options_of(tr.schedulers.build(name))
    found = [f"strategy={strategy}", f"scheduler={name}"]
    for key, value in options.items():
        if value != usual[key]:
            found.append(f"scheduler.{key}={_text(value)}")
    return found


def check_name(name: str) -> None:
    """Refuses a name that no option file can have.

    Raises:
        ValueError: other characters than letters, digits, `_` and `-`, or an option that ships.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise BadOption(f"task.save={name!r} must be made of letters, digits, _ and -")
    if (directory() / "scheduler" / f"{name}.yaml").exists():
        raise BadOption(
            f"task.save={name} is an option that ships, which would be chosen instead: take "
            "another name"
        )


def write(scheduler: tr.Scheduler, name: str, folder: Path, says: str) -> Path:
    """Writes `folder/scheduler/name.yaml`, an option file for `--config-dir folder`.

    says: the comment at its top.
    """
    path = folder / "scheduler" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{key}: {_text(value)}" for key, value in options_of(scheduler).items()]
    with whole(path) as draft:
        draft.write_text("\n".join([f"# {says}", *rows]) + "\n", encoding="utf-8")
    return path


def _text(value: Any) -> str:
    """A value as YAML and Hydra read it."""
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value)
