"""The table that `task=train` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tokenreduce.output import table
from tokenreduce.viz.quantities import quantity


def summary(numbers: Mapping[str, Any], title: str) -> Table:
    """Losses, what was kept, time and memory, from the numbers of `result.json`."""
    made = table(escape(title), show_header=False)
    row = made.add_row
    row("steps", f"{numbers['steps']}{_resumed(numbers)}")
    parameters = numbers["parameters"]
    trained, whole = (quantity(parameters[name], "", 1000) for name in ("trained", "all"))
    row("parameters trained", f"{trained} of {whole}")
    if numbers["loss"] is not None:
        found = [f"{name} {x:.4g}" for name, x in numbers["loss"].items() if x is not None]
        row("loss", ", ".join(found))
    if numbers["held_out_loss"] is not None:
        best = numbers["best"] or "the last step"
        row("held-out loss", f"{numbers['held_out_loss']['best']:.4g} at best ({escape(best)})")
    if numbers["kept_share"] is not None:
        kept, flops = numbers["kept_share"], numbers["flops_share"]
        row("visual tokens kept", f"{kept:.1%} (mean over layers), FLOPs {flops:.1%}")
    if numbers["tokens_per_second"] is not None:
        row("tokens per second", f"{numbers['tokens_per_second']:.0f}")
    if numbers["peak_memory_bytes"] is not None:
        row("peak memory", quantity(numbers["peak_memory_bytes"], "B", 1024))
    skipped = numbers["skipped"]
    if skipped["rows"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in skipped["reasons"].items())
        row("rows left out", escape(f"{skipped['rows']}: {reasons}"))
    row("checkpoint", escape(numbers["checkpoint"]))
    return made


def _resumed(numbers: Mapping[str, Any]) -> str:
    found = numbers["resumed_from"]
    return f" (from {found})" if found else ""
