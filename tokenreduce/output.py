"""Tables for a screen and pictures in files, all of one look."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tokenreduce.files import atomic


def table(
    title: str | Text, columns: Sequence[str] = (), right: Collection[str] = (), **options: Any
) -> Table:
    """A table that is read well at 80 columns: a line under its head, all text from the left.

    Args:
        title: over it; rich reads its markup, so what users wrote is escaped before.
        columns: their heads; more may be added with `add_column`.
        right: heads of those that hold numbers, which are aligned at the right.
        options: of `rich.table.Table`.
    """
    left: dict[str, Any] = {"title_justify": "left", "caption_justify": "left"}
    made = Table(title=title, box=box.SIMPLE_HEAD, **left, **options)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left")
    return made


def draws() -> bool:
    """Whether pictures can be drawn: matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def figure(
    path: Path, rows: int = 1, columns: int = 1, dpi: int = 110, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (rows, columns), in the file at `path` where the block ends well.

    No display is looked for, and matplotlib's own state of open figures is left alone.

    Args:
        path: of the PNG file: written whole, or not at all.
        rows: of axes.
        columns: of axes.
        dpi: pixels per inch.
        options: `figsize` in inches, and what `Figure.subplots` takes.

    Raises:
        ImportError: no matplotlib is installed; ask `draws` before.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=options.pop("figsize", None), layout="constrained")
    yield drawn, drawn.subplots(rows, columns, squeeze=False, **options)
    with atomic(path) as draft:  # of the same rows the same bytes, whatever version drew them
        drawn.savefig(draft, format="png", dpi=dpi, metadata={"Software": None})
