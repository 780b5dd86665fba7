"""What `task=solve` prints: where the schedule stops, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tokenreduce.output import table
from tokenreduce.viz.quantities import quantity


def stops(answer: Mapping[str, Any]) -> Table:
    """The layers of the decoder, and how many visual tokens each works on."""
    columns = ("layers", "visual tokens", "share")
    made = table("schedule", columns, right=columns)
    for row in answer["stages"]:
        first, last = row["layers"]
        layers = f"{first}" if first == last else f"{first} to {last}"
        made.add_row(layers, str(row["visual"]), f"{row['visual'] / answer['visual']:.1%}")
    return made


def costs(answer: Mapping[str, Any], convention: str) -> Table:
    """The unreduced model and the reduced one."""
    numbers = ("full model", "reduced", "share")
    note = _note(answer, convention)
    made = table("cost of a prefill", ("", *numbers), right=numbers, caption=note)
    made.add_row(
        "visual tokens per layer",
        str(answer["visual"]),
        f"{answer['average_tokens']:.4g}",
        f"{answer['average_tokens'] / answer['visual']:.1%}",
    )
    for name, full, ours in answer["flops"]:
        _row(made, f"FLOPs, {name}", full, ours, "", 1000)
    for name, full, ours in answer["bytes"]:
        _row(made, name, full, ours, "B", 1024)
    if answer.get("ms") is not None:
        found = answer["ms"]
        full, ours = found["unreduced"], found["measured"]
        made.add_row("prefill, measured", f"{full:.4g} ms", f"{ours:.4g} ms", f"{ours / full:.1%}")
    return made


def _note(answer: Mapping[str, Any], convention: str) -> str:
    """What the numbers are, and what is missing among them."""
    said = f"From the sizes of the model, but for what is measured. FLOPs: {convention}."
    missing = answer["tower_unknown"]
    return said if missing is None else f"{said}\nVision tower not counted: {escape(missing)}"


def _row(into: Table, name: str, full: float, ours: float, unit: str, base: int) -> None:
    share = f"{ours / full:.1%}" if full else ""
    into.add_row(name, quantity(full, unit, base), quantity(ours, unit, base), share)
