"""Accuracies of conditions that cost the same, as one line of a dot and its interval for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.evaluation.table import label
from tokenreduce.files import atomic

Row = Mapping[str, Any]
COLOURS = {"full": "0.3", "harmless": "0.6", "baseline": "C0", "tested": "C3"}
MEANING = {
    "full": "full model",
    "harmless": "full model, harmless change of the input",
    "baseline": "baseline",
    "tested": "tested",
}
COLUMNS = 3


def draw(plt: Any, root: Path, rows: Sequence[Row]) -> list[Path]:
    """Draws `accuracy.png`, and `accuracy_kinds.png` where there are several kinds of question."""
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.34 * len(rows)), layout="constrained")
    _panel(axis, rows)
    costs = sorted(row["flops_share"] for row in rows if row["role"] in ("baseline", "tested"))
    axis.set_xlabel(
        f"answers right, 95 % interval; FLOPs of the prefill: {costs[len(costs) // 2]:.2f} of the "
        "full model's"
    )
    _legend(figure, rows)
    paths = [saved(plt, figure, root / "accuracy.png")]
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["kinds"]))
    if len(kinds) < 2:
        return paths
    lines = -(-len(kinds) // COLUMNS)
    size = (12, lines * (0.8 + 0.26 * len(rows)) + 0.6)
    figure, grid = plt.subplots(
        lines, COLUMNS, figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    for axis, kind in zip(grid.flat, kinds, strict=False):
        _panel(axis, rows, kind)
        axis.set_title(kind, fontsize=10, parse_math=False)
    for axis in grid.flat[len(kinds) :]:
        axis.axis("off")
    figure.supxlabel("answers right, 95 % interval", fontsize=9)
    _legend(figure, rows)
    return [*paths, saved(plt, figure, root / "accuracy_kinds.png")]


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


def saved(plt: Any, figure: Any, path: Path) -> Path:
    """The path of the picture that a figure becomes, whole or not at all."""
    with atomic(path) as draft:
        figure.savefig(draft, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
