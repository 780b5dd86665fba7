"""What accuracy costs, as pictures: over FLOPs, over measured time, by kind of question."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.evaluation import dots
from tokenreduce.evaluation.comparing import EQUAL
from tokenreduce.evaluation.table import label, spoken
from tokenreduce.output import draws, figure

Row = Mapping[str, Any]
Styles = Mapping[tuple[str, str], tuple[str, str, str]]
STEMS = ("pareto", "accuracy")
REDUCED = ("baseline", "tested")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*Xdh<>p"
COLUMNS = 3
FLOPS = "FLOPs of the decoder's prefill, share of the full model's"


def draw(root: Path, rows: Sequence[Row]) -> list[Path]:
    """Draws `pareto.png` and `pareto_kinds.png`; nothing where matplotlib is missing.

    Where all reductions cost the same, they would be one vertical line: then `accuracy.png` and
    `accuracy_kinds.png` have a line of dots for each. Lines of the others, one for each model, join
    what no other reduction of it beats in both: it answers no better at the same cost. What cannot
    be drawn is warned of: the table is there without it.
    """
    if not draws():
        warnings.warn(
            "no pictures of cost and accuracy without matplotlib: pip install 'tokenreduce[eval]'",
            stacklevel=2,
        )
        return []
    reduced = [row for row in rows if row["role"] in REDUCED]
    if not reduced:
        return []
    for old in STEMS:
        for path in root.glob(f"{old}*.png"):  # of fewer rows
            path.unlink()
    try:
        if equal_cost(reduced):
            return dots.draw(root, rows)
        return [_all(root, rows, reduced), *_by_kind(root, rows, reduced)]
    except Exception as error:  # of a library for pictures, after hours of answers
        warnings.warn(f"no pictures of cost and accuracy: {error}", stacklevel=2)
        return []


def equal_cost(reduced: Sequence[Row]) -> bool:
    """Whether no two reductions differ in FLOPs by more than what is called the same."""
    costs = [row["flops_share"] for row in reduced]
    return bool(max(costs) - min(costs) <= EQUAL)


def _all(root: Path, rows: Sequence[Row], reduced: Sequence[Row]) -> Path:
    """Accuracy over FLOPs and over measured time."""
    styles = _styles(rows)
    timed = [row for row in reduced if row["prefill"]]
    path = root / "pareto.png"
    with figure(path, 1, 2, figsize=(12, 5), sharey=True) as (drawn, ((left, right),)):
        _scatter(left, rows, reduced, styles, lambda row: row["flops_share"])
        left.set(xlabel=FLOPS, ylabel="answers right")
        _scatter(right, rows, timed, styles, lambda row: row["prefill"]["prefill_ratio"])
        right.set(xlabel="measured prefill time, share of the full model's")
        _legend(drawn, [left])
    return path


def _by_kind(root: Path, rows: Sequence[Row], reduced: Sequence[Row]) -> list[Path]:
    """Accuracy over FLOPs for every kind of question that a model was asked; none of one kind."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["kinds"]))
    if len(kinds) < 2:
        return []
    lines, styles = -(-len(kinds) // COLUMNS), _styles(rows)
    path = root / "pareto_kinds.png"
    with figure(path, lines, COLUMNS, figsize=(12, 3 * lines)) as (drawn, grid):
        for axis, kind in dots.panels(grid, kinds):
            _scatter(axis, rows, reduced, styles, lambda row: row["flops_share"], kind)
        drawn.supxlabel(FLOPS, fontsize=9)
        _legend(drawn, grid.flat)
    return [path]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, accuracy) that no other beats in both, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


def _scatter(
    axis: Any, rows: Sequence[Row], shown: Sequence[Row], styles: Styles, cost: Any, kind: str = ""
) -> None:
    def value(row: Row) -> tuple[float, Sequence[float]]:
        found = row["kinds"][kind] if kind else row
        return found["accuracy"], found["interval"]

    furthest = 1.0
    for place, full in enumerate(row for row in rows if row["role"] == "full"):
        if kind and kind not in full["kinds"]:
            continue
        line, own = LINES[place % len(LINES)], full["model"]
        axis.axhline(value(full)[0], color="0.75", linewidth=1, linestyle=line)
        points = [(1.0, full)] + [
            (cost(row), row)
            for row in shown
            if row["model"] == own and (not kind or kind in row["kinds"])
        ]
        for price, row in points:
            (middle, (low, high)), (name, marker, colour) = value(row), styles[_key(row)]
            axis.errorbar(
                price,
                middle,
                yerr=None if row is full else [[max(middle - low, 0)], [max(high - middle, 0)]],
                fmt=marker,
                color=colour,
                markersize=9 if row is full else 6,
                elinewidth=0.8,
                label=name,
                mfc="none" if row["role"] == "baseline" else colour,
            )
        best = front([(price, value(row)[0]) for price, row in points[1:]])
        if best:
            axis.plot(*zip(*best, strict=True), line, color="0.3", linewidth=1, zorder=0)
        furthest = max(furthest, *(price for price, _ in points))
    axis.set_xlim(0, 1.05 * furthest)
    axis.grid(alpha=0.3)


def _styles(rows: Sequence[Row]) -> Styles:
    """Of every row its name, with the model's where there are several, its marker and colour."""
    several = len({row["model"] for row in rows}) > 1
    names = {
        _key(row): f"{row['model']}: {_key(row)[1]}" if several else _key(row)[1] for row in rows
    }
    reduced = sorted({_key(row) for row in rows if row["role"] in REDUCED})
    own = {key: (MARKERS[i % len(MARKERS)], f"C{i % 10}") for i, key in enumerate(reduced)}
    return {key: (name, *own.get(key, ("*", "0.3"))) for key, name in names.items()}


def _key(row: Row) -> tuple[str, str]:
    return row["model"], spoken(row["strategy"]) if row["strategy"] else label(row)


def _legend(figure: Any, axes: Iterable[Any]) -> None:
    """One entry for each name; names are shown as they are, whatever signs they hold."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    made = figure.legend(found.values(), found, loc="outside right upper", fontsize=8)
    for text in made.get_texts():
        text.set_parse_math(False)
