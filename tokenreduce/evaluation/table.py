"""The table of an evaluation: on the screen, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.text import Text

from tokenreduce.evaluation.comparing import Level, compare
from tokenreduce.evaluation.conditions import FULL, Condition
from tokenreduce.evaluation.records import HEAD, Store
from tokenreduce.files import atomic
from tokenreduce.output import table
from tokenreduce.viz.quantities import counted

Row = Mapping[str, Any]
Notes = Mapping[str, Sequence[str]]
LEGEND = (
    "difference: points against the full model on the same questions, 95 % interval over pictures, "
    "not adjusted for the number of rows. "
    "p: of no difference, exact test that flips the signs of whole pictures (McNemar's where every "
    "question has its own), Holm. JSD: how far the distribution of the first answer token moves, "
    "bits. FLOPs, time: of the prefill, share of the full model's; time: median of the ratios of "
    "neighbouring runs. verdict: 'loss < {margin} pts' where a one-sided test shows it, Holm"
)
NUMBERS = 64
"""Columns that the numbers take; a row's name has the rest."""
WIDEST = 16
FEW = 20
"""Pictures below which a bootstrap interval says too little."""
CSV = (
    *("model", "role", "strategy", "scheduler", "positions", "seeds", "questions", "accuracy"),
    *("relative", "difference", "low", "high", "p", "holm", "jsd", "kl", "lower", "verdict"),
    *("against_random", "flops_share", "kv_share", "average_tokens", "prefill_ratio"),
)


def collect(root: Path, level: Level) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of every model in a folder, of all conditions that have all their answers.

    And notes: of a model that is left out as long as its unreduced form has not answered, and
    what a reader has to know of the others (`remarks`).
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
            own = [{"model": head.parent.name, **row} for row in compare(noted, answers, level)]
            rows += own
            notes += remarks(own)
        else:
            notes.append(f"{head.parent.name}: not in the table, its full model has not answered")
    return rows, notes


def write(root: Path, rows: Sequence[Row], level: Level, notes: Notes) -> list[Path]:
    """Writes `table.json` with every number and `table.csv` with the main ones.

    notes: of each run that shares the folder, by what it tested; of the table itself under `""`.
    """
    heads = {head.parent.name: json.loads(head.read_text()) for head in root.glob(f"*/{HEAD}")}
    record = {
        "level": asdict(level),
        "notes": joined(notes),
        "notes_by_run": notes,
        "models": heads,
        "rows": list(rows),
    }
    paths = [root / "table.json", root / "table.csv"]
    with atomic(paths[0]) as draft:
        draft.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with atomic(paths[1]) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, CSV)
        out.writeheader()
        out.writerows(_flat(row) for row in rows)
    return paths


def earlier_notes(root: Path) -> dict[str, list[str]]:
    """The notes of the runs that have written the table of this folder before."""
    path = root / "table.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return dict(found.get("notes_by_run", {}))


def joined(notes: Notes) -> list[str]:
    """The notes of all runs, each once."""
    return list(dict.fromkeys(note for own in notes.values() for note in own))


def print_stored(root: Path) -> None:
    """Prints the table that the jobs of a sweep have made in a folder, and its files' paths."""
    record = json.loads((root / "table.json").read_text("utf-8"))
    console = Console()
    console.print(show(record["rows"], Level(**record["level"]), record["notes"], console.width))
    pictures = sorted([*root.glob("pareto*.png"), *root.glob("accuracy*.png")])
    print()
    for path in (root / "table.json", root / "table.csv", *pictures):
        print(f"Written: {path}")


def row_of(rows: Sequence[Row], model: str, condition: Condition) -> Row:
    """The row that a condition of a model is in, under its seed or among others."""
    wanted = condition.to_dict()

    def same(row: Row) -> bool:
        own = {name: row[name] for name in wanted} | {"seed": wanted["seed"]}
        return row["model"] == model and wanted["seed"] in row["seeds"] and own == wanted

    return next(row for row in rows if same(row))


def summary(row: Row) -> str:
    """One line on a row, for a job whose sweep prints the table at its end."""
    difference = ""
    if row["role"] != "full":
        low, high = (100 * bound for bound in row["difference_interval"])
        change = f"{100 * row['difference']:+.1f} [{low:+.1f},{high:+.1f}]"
        difference = f", {change} points against the full model ({row['verdict']})"
    return f"{label(row)}: {100 * row['accuracy']:.1f} % right{difference}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """What a reader has to know of the rows of one model before their numbers."""
    found = []
    for row in rows:
        if row["role"] == "full" and row["pictures"] < FEW:
            found.append(
                f"{counted(row['pictures'], 'picture')}: intervals over fewer than {FEW} are too "
                "narrow; p and verdict hold"
            )
        if row["role"] == "full" and row["accuracy"] == 0:
            found.append(
                "the full model has no answer right: differences to it mean nothing; look at its "
                "answers (prompt, max_new_tokens, task.match)"
            )
        if row["not_finite"]:
            found.append(
                f"{label(row)}: {row['not_finite']} of {counted(row['questions'], 'question')} "
                "without finite probabilities (NaN): answers count as wrong, JSD leaves them out"
            )
    return found


def show(rows: Sequence[Row], level: Level, notes: Sequence[str], width: int = 80) -> Group:
    """The table for a screen of `width` columns, with what its columns mean below it."""
    title, common = _title(rows)
    made = table(Text(title), padding=0, show_edge=False)
    models = {row["model"] for row in rows}
    names = [label(row, not common) for row in rows]
    if len(models) > 1:
        names = [f"{row['model']}: {name}" for row, name in zip(rows, names, strict=True)]
    made.add_column("", overflow="fold", max_width=max(WIDEST, width - NUMBERS))
    for head in ("right", "difference (95 %)", "p", "JSD", "FLOPs", "time", "verdict"):
        made.add_column(head, justify="left" if head == "verdict" else "right", no_wrap=True)
    for row, name, after in zip(rows, names, [*rows[1:], None], strict=True):
        style = {"full": "bold", "tested": "bold"}.get(row["role"])
        last = after is not None and (row["model"], row["role"]) != (after["model"], after["role"])
        made.add_row(escape(name), *_cells(row), style=style, end_section=last)
    lines = [line for row in rows for line in _lines(row, not common)]
    legend = LEGEND.format(margin=f"{100 * level.margin:g}")
    return Group(made, *(Text(line, style="dim") for line in (legend, *lines, *notes)))


def label(row: Row, schedule: bool = True) -> str:
    """What a row is, in a few words; with its schedule unless that is told elsewhere."""
    if row["role"] == "full":
        return "full model"
    if row["role"] == "harmless":
        change, n = str(row["change"]), row["questions"]
        return f"{change}, {counted(n, 'question')}" if n < row["of_questions"] else change
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
    title = f"{counted(full['questions'], 'question')}, {counted(full['pictures'], 'picture')}"
    own = [row for row in rows if row["role"] in ("baseline", "tested")]
    if len({(_stops(row), row["positions"]) for row in own}) != 1:
        return title, False
    (row, *_) = own
    kept = [f"{100 * keep:.3g} % from layer {layer}" for layer, keep in row["shares"]]
    return f"{title}; visual tokens: {', '.join(kept)}; positions: {row['positions']}", True


def _cells(row: Row) -> list[str]:
    found = [f"{100 * row['accuracy']:.1f} %"]
    if row["role"] == "full":
        return [*found, "", "", "", "1", "1", ""]
    low, high = (100 * bound for bound in row["difference_interval"])
    time = row["prefill"]
    return [
        *found,
        f"{100 * row['difference']:+.1f} [{low:+.1f},{high:+.1f}]",
        _chance(row["paired"].get("holm", row["paired"]["p"])),
        f"{row['jsd']['mean']:.3f}" if row["jsd"] else "none",
        f"{row['flops_share']:.3g}",
        f"{time['prefill_ratio']:.2f}" if time else "",
        row["verdict"],
    ]


def _chance(p: float) -> str:
    """A p-value, short."""
    return "<.001" if p < 0.001 else f"{p:.2g}"


def _lines(row: Row, schedule: bool) -> list[str]:
    """How a tested reduction compares with the baselines, harmless changes, and other questions."""
    if row["role"] != "tested":
        return []
    name, lines, same, other = label(row, schedule), [], [], []
    for baseline, found in row["against"].items():
        if "difference" not in found:  # a strategy that does not keep what its schedule says
            other.append(f"{baseline} ({found['flops_share']:.3g} of the FLOPs)")
            continue
        low, high = (100 * bound for bound in found["interval"])
        same.append(f"{baseline} {100 * found['difference']:+.1f} [{low:+.1f},{high:+.1f}]")
    if same:
        lines.append(f"{name} minus a baseline of the same cost, points: {', '.join(same)}")
    if other:
        lines.append(f"{name} is not compared with baselines of another cost: {', '.join(other)}")
    beyond = [
        f"{change} {found['mean']:+.3f} (p {_chance(found['p'])})"
        for change, found in row["beyond"].items()
    ]
    if beyond:
        lines.append(f"{name}, JSD minus that of a harmless change: {', '.join(beyond)}")
    if row["following"]:
        lines.append(f"{name}, choice of tokens: {row['following']['verdict']}")
    return lines


def _flat(row: Row) -> dict[str, Any]:
    """The cells of a row of the CSV file."""
    change, shown, p = row.get("difference_interval"), row["non_inferiority"], row["paired"]
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
        "jsd": row["jsd"]["mean"] if change and row["jsd"] else None,
        "kl": row["kl"]["mean"] if change and row["kl"] else None,
        "lower": shown and shown["lower"],
        "against_random": row.get("against", {}).get("random", {}).get("difference"),
        "prefill_ratio": row["prefill"] and row["prefill"]["prefill_ratio"],
    }
