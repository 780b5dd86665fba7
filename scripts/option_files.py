"""Option files of the command line, made of the classes: their options, defaults and words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from facts import fields, option_docs, shipped, summary

import tokenreduce as tr
from tokenreduce.config import RENAMED
from tokenreduce.paper import Paper
from tokenreduce.presets import load_schedule

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
MARK = "# Written by scripts/generate.py from "
"""Begins the last line of every file that is made here."""
WIDE = 110
"""Columns of a line with its comment; longer comments stand above."""


def files() -> dict[Path, str]:
    """Every option file that is made, and what is in it."""
    found = {CONF / "scheduler" / f"{name}.yaml": rule(name) for name in tr.schedulers}
    for name, kind in shipped().items():
        found[CONF / "strategy" / f"{name}.yaml"] = strategy(name, kind)
        if preset(name, kind) == name:
            found[CONF / "scheduler" / f"{name}.yaml"] = papers_schedule(name, kind)
    for group, names in RENAMED.items():
        for old, new in names.items():
            found[CONF / group / f"{old}.yaml"] = renamed(group, new)
    return found


def stale() -> list[Path]:
    """Files that were made once, of what is not there any more."""
    made = files()
    return [
        path
        for path in sorted(CONF.glob("*/*.yaml"))
        if MARK in path.read_text(encoding="utf-8") and path not in made
    ]


def strategy(name: str, kind: type[tr.Strategy]) -> str:
    """The option that chooses a strategy, and with it the schedule of its paper."""
    source = f" ({kind.paper})" if isinstance(kind.paper, Paper) else ""
    rows = [f"# {summary(kind).rstrip('.')}{source}."]
    if schedules(kind):
        usual = preset(name, kind)
        rows += ["defaults:", f"  - override /scheduler@_global_.scheduler: {usual}"]
    rows += [f"name: {name}", *values(defaults(kind), option_docs(kind))]
    return ended(rows, kind)


def rule(name: str) -> str:
    """The option that chooses a scheduler; one around another leaves that to its group."""
    kind = tr.schedulers[name]
    given = defaults(kind)
    around = {key: value for key, value in given.items() if isinstance(value, tr.Scheduler)}
    rows = [f"# {summary(kind)}"]
    for key, value in around.items():
        rows += [f"# Another {key}: scheduler@scheduler.{key}=single", "defaults:"]
        rows += [f"  - /scheduler@{key}: {tr.schedulers.name_of(value)}", "  - _self_"]
    plain = {key: value for key, value in given.items() if key not in around}
    return ended([*rows, f"name: {name}", *values(plain, option_docs(kind))], kind)


def papers_schedule(name: str, kind: type[tr.Strategy]) -> str:
    """The schedule that a strategy brings, under the strategy's name."""
    scheduler = kind().scheduler()
    said = kind.scheduler if "scheduler" in vars(kind) else type(scheduler)
    rows = [f"# {kind.__name__}: {lower(summary(said))}"]
    return ended([*rows, *values(tr.schedulers.node(scheduler), {})], kind)


def renamed(group: str, new: str) -> str:
    """An option under the name that it had; `config.warn_renamed` says so when it is chosen."""
    rows = [f"# Renamed: {group}={new}.", "defaults:", f"  - {new}"]
    return "\n".join([*rows, f"{MARK}tokenreduce/config.py", ""])


def preset(name: str, kind: type[tr.Strategy]) -> str:
    """The option of the group `scheduler` that is a strategy's own schedule.

    A method with a paper has one under its name. Else it is an option that is written by hand or
    the class's own, if one is equal.
    """
    if isinstance(kind.paper, Paper):
        return name
    wanted = kind().scheduler()
    for option in [*tr.schedulers, *by_hand()]:
        if built(option) == wanted:
            return option
    return name


def by_hand() -> list[str]:
    """The schedules that somebody wrote."""
    paths = sorted((CONF / "scheduler").glob("*.yaml"))
    return [path.stem for path in paths if MARK not in path.read_text(encoding="utf-8")]


def built(option: str) -> tr.Scheduler:
    """What an option of the group `scheduler` stands for."""
    if option in tr.schedulers:
        return tr.schedulers[option]()
    return load_schedule(CONF / "scheduler" / f"{option}.yaml")


def schedules(kind: type[tr.Strategy]) -> bool:
    """Whether a schedule says anything to a strategy: to one that keeps everything it does not."""
    return kind.reduces or kind.site != tr.Strategy.site


def defaults(kind: type) -> dict[str, Any]:
    """The options of a class and their defaults."""
    return {field.name: field.default for field in fields(kind)}


def values(given: Mapping[str, Any], said: Mapping[str, str]) -> list[str]:
    """Rows `key: value  # what it does`, the comments in one column."""
    rows = {key: f"{key}: {scalar(value)}" for key, value in given.items()}
    width = max((len(row) for row in rows.values()), default=0)
    found: list[str] = []
    for key, row in rows.items():
        comment = said.get(key, "").rstrip(".")
        line = f"{row:<{width}}   # {comment}" if comment else row
        found += [line] if len(line) <= WIDE else [f"# {key}: {comment}", row]
    return found


def scalar(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, float):
        return repr(value)
    text: str = yaml.safe_dump(value, default_flow_style=True)
    return text.splitlines()[0]


def lower(sentence: str) -> str:
    """A sentence as it goes on behind a colon: what is a symbol or a name keeps its capital."""
    first = sentence.split()[0]
    return (
        sentence
        if first != first.capitalize() or first in ("K", "R")
        else (sentence[0].lower() + sentence[1:])
    )


def ended(rows: Iterable[str], kind: type) -> str:
    """The rows, and where they come from."""
    return "\n".join([*rows, f"{MARK}{kind.__module__.replace('.', '/')}.py", ""])
