"""Tables of the leaderboard and of the choice of a method, from the results that are committed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from facts import need
from markdown import table

import tokenreduce as tr
from tokenreduce.evidence import TOWER, kind_of

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
SCHEDULES = ("before the model", "at layer 2", "pyramid", "found")
SHOWN = "pyramid"
"""The schedule of the tables that have one."""
Row = Mapping[str, Any]


@cache
def results() -> dict[str, Any]:
    """The table that `docs/studies/leaderboard.py` has written."""
    found: dict[str, Any] = json.loads((RESULTS / "leaderboard.json").read_text())
    return found


def conditions() -> str:
    """What the numbers depend on."""
    found, full = results(), reference("full")[0]
    head = found["head"]
    machine, versions = head["machine"], head["versions"]
    costs = sorted({row["flops_share"] for row in reduced()})
    return (
        f"{full['questions']} held-out questions about {full['pictures']} pictures; "
        f"{machine['processor']} CPU, {machine['threads']} thread, {head['identity']['dtype']}, "
        f"`positions=keep`, measured FLOPs {100 * costs[0]:.1f} to {100 * costs[-1]:.1f} % of the "
        f"full model's; torch {versions['torch']}, transformers {versions['transformers']}, Python "
        f"{versions['python']}; commit {str(head['commit'])[:9]}. Command: `{found['command']}`."
    )


def leaderboard() -> str:
    """Answers right under every schedule, best mean first, next to what random keeps."""
    names = list(dict.fromkeys(name(row) for row in reduced()))
    board = {one: {schedule(row): row for row in reduced() if name(row) == one} for one in names}
    ordered = sorted(names, key=lambda one: -mean(board[one].values()))
    head = ["strategy", "reads the question", *(f"{s}, %" for s in schedules()), "mean"]
    return table(
        head,
        (
            [
                linked(one),
                "yes" if tr.strategies.build(one).reads_text else "no",
                *(cell(board[one].get(at)) for at in schedules()),
                f"{100 * mean(board[one].values()):.1f}",
            ]
            for one in ordered
        ),
    )


def against_random() -> str:
    """Differences to random under the same schedule, with intervals, and divergences."""
    rows = [row for row in reduced() if row["role"] == "tested"]
    names = sorted({name(row) for row in rows})
    head = ["strategy", *(f"{s}: points, (JSD)" for s in schedules())]

    def shown(one: str, at: str) -> str:
        row = next((r for r in rows if name(r) == one and schedule(r) == at), None)
        found = {} if row is None else row["against"].get("random", {})
        if "difference" not in found:
            return "–" if row is None else f"costs {row['flops_share']:.2f}"
        low, high = (100 * bound for bound in found["interval"])
        text = f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        sure = "**" if low > 0 else ""
        return f"{sure}{text}{sure} ({1000 * found['jsd']['mean']:+.0f})"

    return table(head, ([f"`{one}`", *(shown(one, at) for at in schedules())] for one in names))


def references() -> str:
    """The full model, and harmless changes of its input."""
    rows = [*reference("full"), *reference("harmless")]
    return table(
        ("full model", "right, %", "difference, points", "JSD, millibits"),
        (
            (
                row["change"] or "as it is",
                f"{100 * row['accuracy']:.1f}",
                "" if row["role"] == "full" else interval(row),
                "" if row["role"] == "full" else f"{1000 * row['jsd']['mean']:.0f}",
            )
            for row in rows
        ),
    )


def following() -> str:
    """How far kept tokens move under another question, and under the same in other words."""
    rows = [row for row in reduced() if row.get("following") and schedule(row) == SHOWN]
    rows = [row for row in rows if "other" in row["following"]]
    return table(
        ("strategy", "another question", "the same in other words", "pairs", "p", "verdict"),
        (
            (
                f"`{name(row)}`",
                f"{row['following']['other']['mean']:.3f}",
                f"{row['following']['paraphrase']['mean']:.3f}",
                str(row["following"]["questions"]),
                f"{row['following']['beyond']['p']:.2g}",
                row["following"]["verdict"],
            )
            for row in sorted(rows, key=lambda row: -row["following"]["other"]["mean"])
        ),
    )


def kinds() -> str:
    """Answers right by type of question, under the shown schedule."""
    rows = [*reference("full"), *(row for row in reduced() if schedule(row) == SHOWN)]
    types = list(rows[0]["kinds"])
    return table(
        ("strategy", *(f"`{kind}`" for kind in types)),
        (
            (
                f"`{name(row)}`" if row["strategy"] else "full model",
                *(f"{100 * row['kinds'][kind]['accuracy']:.0f}" for kind in types),
            )
            for row in sorted(rows, key=lambda row: -row["accuracy"])
        ),
    )


def which() -> str:
    """What is known of every method: accuracy, cost of the choice, evidence, positions."""
    costs = json.loads((RESULTS / "methods_cpu.json").read_text())["benchmarks"]
    added = {b["extra_info"]["method"]: b["extra_info"]["added_share"] for b in costs}
    board = {
        one: mean(row for row in reduced() if name(row) == one)
        for one in {name(row) for row in reduced()}
    }
    made = {one: tr.strategies.build(one) for one in tr.strategies}
    methods = [one for one, strategy in made.items() if strategy.reduces or one in board]
    return table(
        ("strategy", "answers right, %", "cost of choosing, %", "reads the question",
         "needs of the vision tower", "merges"),
        (
            (
                linked(one),
                f"{100 * board[one]:.1f}" if one in board else "–",
                f"{100 * added[one]:.1f}" if one in added else "–",
                "yes" if made[one].reads_text else "no",
                ", ".join(need(x) for x in sorted(made[one].needs) if tower(x)) or "none",
                "yes" if made[one].mixes else "no",
            )
            for one in sorted(methods, key=lambda one: -board.get(one, 0))
        ),
    )  # fmt: skip


def tower(evidence: str) -> bool:
    """Whether a piece of evidence comes from the vision tower, or from the pictures."""
    return kind_of(evidence) in TOWER or evidence in ("grid", "pictures")


def reduced() -> list[Row]:
    """The rows of reductions, baselines among them."""
    return [row for row in results()["rows"] if row["role"] in ("baseline", "tested")]


def reference(role: str) -> list[Row]:
    """The rows of the full model, or of harmless changes."""
    return [row for row in results()["rows"] if row["role"] == role]


def name(row: Row) -> str:
    """A row's strategy."""
    return str(row["strategy"]["name"])


def schedule(row: Row) -> str:
    """A row's schedule, as the study calls it."""
    stops = [layer for layer, _ in row["shares"]]
    if row["scheduler"]["name"] == "single":
        return "before the model" if stops == [0] else f"at layer {stops[0]}"
    return "pyramid" if row["scheduler"]["name"] == "pyramid" else "found"


def schedules() -> list[str]:
    """Every schedule of the board."""
    found = {schedule(row) for row in reduced()}
    return [at for at in SCHEDULES if at in found]


def mean(rows: Iterable[Row]) -> float:
    """The mean accuracy over the schedules that a strategy has."""
    return statistics.fmean(row["accuracy"] for row in rows)


def cell(row: Row | None) -> str:
    """Answers right, with their interval."""
    if row is None:
        return "–"
    low, high = row["interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def interval(row: Row) -> str:
    """The difference to the full model."""
    low, high = (100 * bound for bound in row["difference_interval"])
    return f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def linked(one: str) -> str:
    """A strategy with a link to its page."""
    return f"[`{one}`](methods/{one}.md)"


def board(one: str) -> str:
    """A strategy's answers right under every schedule, next to the full model's; empty without."""
    rows = {schedule(row): row for row in reduced() if name(row) == one}
    if not rows:
        return ""
    full = reference("full")[0]
    return table(
        ("full model, %", *(f"{at}, %" for at in schedules()), "mean"),
        [
            [
                f"{100 * full['accuracy']:.1f}",
                *(cell(rows.get(at)) for at in schedules()),
                f"{100 * mean(rows.values()):.1f}",
            ]
        ],
    )


TABLES: dict[str, Callable[[], str]] = {
    "leaderboard": leaderboard,
    "leaderboard-conditions": conditions,
    "leaderboard-random": against_random,
    "leaderboard-references": references,
    "leaderboard-following": following,
    "leaderboard-kinds": kinds,
    "which-method": which,
}
