"""Accuracies of conditions that cost the same, as one line of a dot and its interval for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.evaluation.table import label
from tokenreduce.output import figure

Row = Mapping[str, Any]
COLOURS = {"full": "0.3", "harmless": "0.6", "baseline": "C0", "tested": "C3"}
MEANING = {
    "full": "full model",
    "harmless": "full model, harmless change of the input",
    "baseline": "baseline",
    "tested": "tested",
}
COLUMNS = 3


def draw(root: Path, rows: Sequence[Row]) -> list[Path]:
    """Draws `accuracy.png`, and `accuracy_kinds.png` where there are several kinds of question."""
    paths = [root / "accuracy.png"]
    with figure(paths[0], figsize=(8, 1.4 + 0.34 * len(rows))) as (drawn, ((axis,),)):
        _panel(axis, rows)
        costs = sorted(row["flops_share"] for row in rows if row["role"] in ("baseline", "tested"))
        axis.set_xlabel(
            "answers right, 95 % interval; FLOPs of the prefill: "
            f"{costs[len(costs) // 2]:.2f} of the full model's"
        )
        _legend(drawn, rows)
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["kinds"]))
    if len(kinds) < 2:
        return paths
    lines = -(-len(kinds) // COLUMNS)
    size = (12, lines * (0.8 + 0.26 * len(rows)) + 0.6)
    paths.append(root / "accuracy_kinds.png")
    with figure(paths[1], lines, COLUMNS, figsize=size, sharey=True) as (drawn, grid):
        for axis, kind in panels(grid, kinds):
            _panel(axis, rows, kind)
        drawn.supxlabel("answers right, 95 % interval", fontsize=9)
        _legend(drawn, rows)
    return paths


def panels(grid: Any, kinds: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """The axes of a grid, each with the kind that it is about, as its title; others are empty."""
    for axis, kind in zip(grid.flat, kinds, strict=False):
        axis.set_title(kind, fontsize=10, parse_math=False)
        yield axis, kind
    for axis in grid.flat[len(kinds) :]:
        axis.axis("off")


def _panel(axis: Any, rows: Sequence[Row], kind: str = "") -> None:
    """The first row on top; a vertical line through the full model's accuracy."""
    several = len({row["model"] for row in rows}) > 1
    for place, row in enumerate(rows):
        found = row["kinds"].get(kind) if kind else row
        if found is None:
            continue
        middle, (low, high) = found["accuracy"], found["interval"]
        spread = [[max(middle - low, 0)], [max(high - middle, 0)]]
        colour = COLOURS[row["role"]]
        axis.errorbar(middle, place, xerr=spread, fmt="o", color=colour, elinewidth=1)
        if row["role"] == "full" and not several:
            axis.axvline(middle, color="0.8", linewidth=1, zorder=0)
    names = [
        f"{row['model']}: {label(row, False)}" if several else label(row, False) for row in rows
    ]
    axis.set_yticks(range(len(rows)), names, fontsize=8, parse_math=False)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.3, axis="x")


def _legend(figure: Any, rows: Sequence[Row]) -> None:
    """What the colours mean."""
    from matplotlib.lines import Line2D

    roles = [role for role in MEANING if any(row["role"] == role for row in rows)]
    marks = [Line2D([], [], marker="o", linestyle="", color=COLOURS[role]) for role in roles]
    figure.legend(
        marks, [MEANING[role] for role in roles], loc="outside upper left", ncols=2, fontsize=8
    )
