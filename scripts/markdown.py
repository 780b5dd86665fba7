"""Markdown, as the generated pages have it."""

from __future__ import annotations

from collections.abc import Iterable

Row = Iterable[str]


def table(head: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
