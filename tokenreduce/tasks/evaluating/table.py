"""The table of an evaluation: on the screen, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tokenreduce.evaluation.comparing import Level, compare
from tokenreduce.evaluation.records import HEAD, Store
from tokenreduce.files import whole
from tokenreduce.tasks.evaluating.conditions import FULL

Row = Mapping[str, Any]
LEGEND = (
    "difference: points against the full model, 95 % interval over pictures; p: exact McNemar, "
    "Holm; JSD: divergence of the first answer token, millibits; verdict: one-sided test that "
    "less than "
    "{margin} points are lost, Holm; beyond: JSD more than under that harmless change"
)
CSV = (
    *("model", "role", "strategy", "scheduler", "positions", "seeds", "questions", "accuracy"),
    *("relative", "difference", "low", "high", "p", "holm", "jsd", "kl", "lower", "verdict"),
    *("against_random", "flops_share", "kv_share", "average_tokens", "prefill_ratio"),
)


def collect(root: Path, level: Level) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of every model in a folder, of all conditions that have all their answers.

    And a note on each model that is left out, as long as its unreduced form has not answered.
    """
    rows: list[dict[str, Any]] = []
    notes = []
    for head in sorted(root.glob(f"*/{HEAD}")):
        store = Store(head.parent)
        noted = {key: n for key, n in store.conditions().items() if "condition" in n}
        answers = {
            key: store.answers(key)
            for key in noted
            if (head.parent / "answers" / f"{key}.jsonl").is_file()
        }
        if FULL.key in answers:
            rows += [{"model": head.parent.name, **row} for row in compare(noted, answers, level)]
        else:
            notes.append(f"{head.parent.name}: not in the table, its full model has not answered")
    return rows, notes


def write(root: Path, rows: Sequence[Row], level: Level, notes: Sequence[str]) -> list[Path]:
    """Writes `table.json` with every number and `table.csv` with the main ones."""
    heads = {head.parent.name: json.loads(head.read_text()) for head in root.glob(f"*/{HEAD}")}
    record = {"level": asdict(level), "notes": list(notes), "models": heads, "rows": list(rows)}
    paths = [root / "table.json", root / "table.csv"]
    with whole(paths[0]) as draft:
        draft.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with whole(paths[1]) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, CSV)
        out.writeheader()
        out.writerows(_flat(row) for row in rows)
    return paths


def show(rows: Sequence[Row], level: Level, notes: Sequence[str]) -> Group:
    """The table for a screen, with what the columns mean below it."""
    title, common = _title(rows)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for name in ("", "right", "difference", "p", "JSD", "FLOPs", "time", "verdict"):
        left = name in ("", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=name == "difference")
    models = {row["model"] for row in rows}
    for row in rows:
        style = {"full": "bold", "tested": "bold"}.get(row["role"])
        where = f"{row['model']}: " if len(models) > 1 else ""
        table.add_row(escape(where + label(row, not common)), *_cells(row), style=style)
    lines = [line for row in rows for line in _lines(row, not common)]
    legend = LEGEND.format(margin=f"{100 * level.margin:g}")
    return Group(table, *(Text(line, style="dim") for line in (legend, *lines, *notes)))


def label(row: Row, schedule: bool = True) -> str:
    """What a row is, in a few words; with its schedule unless that is told elsewhere."""
    if row["role"] in ("full", "harmless"):
        return row["change"] or "full model"
    name = spoken(row["strategy"])
    if len(row["seeds"]) > 1:
        name += f", {len(row['seeds'])} seeds"
    return f"{name} · {_stops(row)}" if schedule else name


def _stops(row: Row) -> str:
    """A schedule as `single 2: 0.5`: the share of the tokens from each layer on."""
    stops = " ".join(f"{layer}: {keep:.3g}" for layer, keep in row["shares"])
    return f"{row['scheduler']['name']} {stops}"


def spoken(options: Mapping[str, Any]) -> str:
    """A name with its options, as in `single(layer=2, keep=0.5)`."""
    given = ", ".join(f"{key}={_value(value)}" for key, value in options.items() if key != "name")
    return f"{options['name']}({given})" if given else str(options["name"])


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _title(rows: Sequence[Row]) -> tuple[str, bool]:
    """What the table is about, and whether that says the one schedule of all reductions."""
    full = next(row for row in rows if row["role"] == "full")
    title = f"{full['questions']} questions about {full['pictures']} pictures"
    schedules = {
        (_stops(row), row["positions"]) for row in rows if row["role"] in ("null", "tested")
    }
    if len(schedules) != 1:
        return title, False
    ((stops, positions),) = schedules
    return f"{title}; {stops}, positions {positions}", True


def _cells(row: Row) -> list[str]:
    found = [f"{100 * row['accuracy']:.1f} %"]
    if row["role"] == "full":
        return [*found, "", "", "", "1", "1", ""]
    low, high = (100 * bound for bound in row["difference_interval"])
    p = row["mcnemar"]
    time = row["prefill"]
    return [
        *found,
        f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]",
        "" if p is None else f"{p.get('holm', p['p']):.2g}",
        f"{1000 * row['jsd']['mean']:.3g}",
        f"{row['flops_share']:.3f}",
        f"{time['prefill_ratio']:.2f}" if time else "",
        row["verdict"],
    ]


def _lines(row: Row, schedule: bool) -> list[str]:
    """What a tested reduction is beside chance, beside harmless change, and to the question."""
    if row["role"] != "tested":
        return []
    parts = []
    for name, found in row["against"].items():
        if "difference" not in found:  # a strategy that does not keep what its schedule says
            parts.append(f"{name} costs {found['flops_share']:.3f} of the FLOPs: not compared")
            continue
        low, high = (100 * bound for bound in found["interval"])
        change = 100 * found["difference"]
        parts.append(f"{change:+.1f} [{low:+.1f}, {high:+.1f}] against {name}")
    for name, found in row["beyond"].items():
        parts.append(f"JSD {1000 * found['mean']:+.3g} beyond {name} (p {found['p']:.2g})")
    if row["following"]:
        parts.append(row["following"]["verdict"])
    return [f"{label(row, schedule)}: {'; '.join(parts)}"] if parts else []


def _flat(row: Row) -> dict[str, Any]:
    """The cells of a row of the CSV file."""
    change, shown, p = row.get("difference_interval"), row["non_inferiority"], row["mcnemar"]
    return {
        **{name: row.get(name) for name in CSV if name in row},
        "strategy": spoken(row["strategy"]) if row["strategy"] else row["change"] or "full",
        "scheduler": spoken(row["scheduler"]) if row["scheduler"] else None,
        "seeds": len(row["seeds"]),
        "relative": row["relative"]["relative"] if change else 1.0,
        "low": change and change[0],
        "high": change and change[1],
        "p": p and p["p"],
        "holm": p and p.get("holm"),
        "jsd": row["jsd"]["mean"] if change else None,
        "kl": row["kl"]["mean"] if change else None,
        "lower": shown and shown["lower"],
        "against_random": row.get("against", {}).get("random", {}).get("difference"),
        "prefill_ratio": row["prefill"] and row["prefill"]["prefill_ratio"],
    }
