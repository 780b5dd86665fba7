"""`tokenreduce list` and `tokenreduce --version`: what there is to choose; loads no torch."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenreduce.config import known, option_files
from tokenreduce.errors import Refused, did_you_mean
from tokenreduce.output import table
from tokenreduce.program.result import versions

KINDS = {
    "strategy": "strategies",
    "scheduler": "schedulers",
    "model": "models",
    "task": "tasks",
    "data": "data",
    "experiment": "experiments",
    "adapter": "adapters",
}
"""Groups in the order in which they are listed, and their plurals."""
WIDTH, SHORT = 80, 100


def version() -> str:
    """The version of tokenreduce, and those of what decides its numbers, in one line."""
    found = versions()
    own = found.pop("tokenreduce") or "of unknown version"
    rest = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    return f"tokenreduce {own} ({rest})"


def show(kinds: Sequence[str] = ()) -> None:
    """Prints what there is of each kind: its name, and what it is.

    Adapters come last: only for them torch is loaded.

    Raises:
        Refused: a kind that there is not.
    """
    wanted = [_kind(kind) for kind in kinds] or list(KINDS)
    console = Console(width=min(WIDTH, Console().width), highlight=False, soft_wrap=False)
    for kind in (kind for kind in KINDS if kind in wanted):
        console.print(_table(kind))


def _kind(word: str) -> str:
    for kind, plural in KINDS.items():
        if word in (kind, plural):
            return kind
    raise Refused(
        f"nothing is listed as {word!r}{did_you_mean(word, KINDS.values())} "
        f"(known: {', '.join(KINDS.values())})"
    )


def _table(kind: str) -> Table:
    """One kind; names whole, what they do wrapped."""
    rows = list(_adapters()) if kind == "adapter" else list(_options(kind))
    how = "found by the checkpoint's model_type" if kind == "adapter" else f"{kind}=NAME"
    options: dict[str, Any] = {"show_header": False, "padding": (0, 1, 0, 0), "pad_edge": False}
    made = table(f"{KINDS[kind]} ({how})", **options)
    made.add_column("name", no_wrap=True)
    made.add_column("what it does")
    for name, text in rows:
        made.add_row(name, escape(text))
    return made


def _options(group: str) -> Iterator[tuple[str, str]]:
    """Name and first line of every option file of a group; a strategy's with its schedule."""
    for of, name, path in option_files():
        if of == group:
            text = comment(path)
            if group == "strategy" and (usual := _schedule(path)):
                text += f" Schedule: {usual}."
            yield name, text


def comment(path: Path) -> str:
    """What an option file says in its first comment: a sentence, or two short ones."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    said, *more = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(lines))
    if more and len(f"{said} {more[0]}") <= SHORT:
        said = f"{said} {more[0]}"
    return textwrap.shorten(said, 2 * SHORT, placeholder=" ...")


def _schedule(path: Path) -> str | None:
    """The scheduler that a strategy's option file brings."""
    defaults = yaml.safe_load(path.read_text(encoding="utf-8")).get("defaults", [])
    for row in defaults:
        if isinstance(row, dict):
            for key, value in row.items():
                if "/scheduler" in key:
                    return str(value)
    return None


def _adapters() -> Iterator[tuple[str, str]]:
    """Names with the families that they read; those of none are asked for by name."""
    for name, adapter in known("adapter").items():
        said = (inspect.getdoc(adapter) or "").partition("\n")[0]
        yield name, ", ".join(sorted(adapter.families)) or said
