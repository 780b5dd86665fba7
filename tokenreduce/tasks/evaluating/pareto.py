"""What accuracy costs, as pictures: over FLOPs, over measured time, by kind of question."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.tasks.evaluating.table import label, spoken

Row = Mapping[str, Any]
MARKERS = "osD^vP*Xdh<>p"
COLUMNS = 3


def draw(root: Path, rows: Sequence[Row]) -> list[Path]:
    """Draws `pareto.png` and `pareto_kinds.png`; nothing where matplotlib is missing.

    The line joins what no other reduction beats in both: it answers no better at the same cost.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        warnings.warn(
            "no pictures of cost and accuracy without matplotlib: pip install 'tokenreduce[eval]'",
            stacklevel=2,
        )
        return []
    made = []
    reduced = [row for row in rows if row["role"] in ("null", "tested")]
    if not reduced:
        return []
    styles = _styles(reduced)
    timed = [row for row in reduced if row["prefill"]]
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", sharey=True)
    _scatter(axes[0], rows, reduced, styles, lambda row: row["flops_share"])
    axes[0].set(
        xlabel="FLOPs of the decoder's prefill, share of the full model's", ylabel="answers right"
    )
    _scatter(axes[1], rows, timed, styles, lambda row: row["prefill"]["prefill_ratio"])
    axes[1].set(xlabel="measured prefill time, share of the full model's")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8)
    made.append(_saved(plt, figure, root / "pareto.png"))
    kinds = list(rows[0]["kinds"])
    if len(kinds) > 1:
        lines = -(-len(kinds) // COLUMNS)
        figure, grid = plt.subplots(
            lines, COLUMNS, figsize=(12, 3 * lines), layout="constrained", squeeze=False
        )
        for axis, kind in zip(grid.flat, kinds, strict=False):
            _scatter(axis, rows, reduced, styles, lambda row: row["flops_share"], kind)
            axis.set_title(kind, fontsize=10)
        for axis in grid.flat[len(kinds) :]:
            axis.axis("off")
        figure.supxlabel("FLOPs of the decoder's prefill, share of the full model's", fontsize=9)
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", fontsize=8)
        made.append(_saved(plt, figure, root / "pareto_kinds.png"))
    return made


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, accuracy) that no other beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def _scatter(
    axis: Any, rows: Sequence[Row], shown: Sequence[Row], styles: Any, cost: Any, kind: str = ""
) -> None:
    def value(row: Row) -> tuple[float, Sequence[float]]:
        found = row["kinds"][kind] if kind else row
        return found["accuracy"], found["interval"]

    full = [row for row in rows if row["role"] == "full"]
    for row, name in zip(full, ("full model", *("_" for _ in full)), strict=False):
        axis.axhline(value(row)[0], color="0.6", linewidth=1, linestyle="--")
        axis.plot(1, value(row)[0], "*", color="0.3", markersize=9, label=name)
    points = []
    for row in shown:
        if kind and kind not in row["kinds"]:
            continue
        (middle, (low, high)), colour = value(row), styles[_name(row)]
        points.append((cost(row), middle))
        axis.errorbar(
            cost(row),
            middle,
            yerr=[[max(middle - low, 0)], [max(high - middle, 0)]],
            fmt=colour[0],
            color=colour[1],
            markersize=6,
            elinewidth=0.8,
            label=_name(row),
            mfc="none" if row["role"] == "null" else colour[1],
        )
    if points:
        axis.plot(*zip(*front(points), strict=True), color="0.3", linewidth=1, zorder=0)
    axis.set_xlim(0, max([1.05, *(1.05 * cost for cost, _ in points)]))
    _once(axis)
    axis.grid(alpha=0.3)


def _once(axis: Any) -> None:
    """One entry of the legend for each name."""
    seen: set[str] = set()
    for container in axis.containers:
        name = container.get_label()
        if name in seen:
            container.set_label("_nolegend_")
        seen.add(name)


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    names = list(dict.fromkeys(_name(row) for row in rows))
    return {name: (MARKERS[i % len(MARKERS)], f"C{i % 10}") for i, name in enumerate(sorted(names))}


def _name(row: Row) -> str:
    return spoken(row["strategy"]) if row["strategy"] else label(row)


def _saved(plt: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path
