"""The tables that `task=profile` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from tokenreduce.output import table


def layers_table(numbers: Mapping[str, Any], title: str) -> Table:
    """What one stop costs: a row for every layer, a column for every share."""
    cells, keeps = numbers["sensitivity"], numbers["keeps"]
    answers = numbers["full"]["right"] is not None
    made = table(
        escape(title),
        caption="Divergence from the whole model (JSD, bits); in brackets the share of "
        f"{'right answers' if answers else 'unchanged answers'}, {_whole(numbers)}.",
    )
    for name in ("from layer", *(f"{keep:.0%} left" if keep else "none left" for keep in keeps)):
        made.add_column(name, justify="right")
    for layer in numbers["layers"]:
        own = {cell["stops"][0][1]: cell for cell in cells if cell["stops"][0][0] == layer}
        made.add_row(str(layer), *(_cell(own[keep]) for keep in keeps))
    return made


def schedules_table(numbers: Mapping[str, Any]) -> Table:
    """The schedules that were measured, the best first, and the one that was given."""
    columns = ("", "tokens", "FLOPs", "JSD (answers)", "as predicted")
    made = table("Schedules, measured", columns)
    best, given = numbers["found"], numbers["given"]
    made.add_row("found", *_schedule(best))
    others = [r for r in numbers["schedules"] if r["stops"] not in (best["stops"], given["stops"])]
    for row in others[:4]:
        made.add_row("", *_schedule(row))
    made.add_row("given", *_schedule(given))
    return made


def _schedule(row: Mapping[str, Any]) -> Sequence[str]:
    predicted = row["predicted"]
    return (
        escape(way(row["stops"])),
        f"{row['flops_share']:.4f}",
        _cell(row),
        "" if predicted is None else f"{predicted:.4f}",
    )


def way(stops: Sequence[Sequence[float]]) -> str:
    """Stops in words: `60% from 2, none from 4`."""
    parts = (f"{keep:.1%}" if keep else "none" for _, keep in stops)
    named = [f"{k} from {layer}" for k, (layer, _) in zip(parts, stops, strict=True)]
    return ", ".join(named) or "all"


def _cell(cell: Mapping[str, Any]) -> str:
    share = cell["same"] if cell["right"] is None else cell["right"]
    return f"{cell['jsd']:.4f} ({share:.1%})"


def _whole(numbers: Mapping[str, Any]) -> str:
    right = numbers["full"]["right"]
    return "all of the whole model's" if right is None else f"{right:.1%} of the whole model's"
