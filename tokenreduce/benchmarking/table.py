"""The tables that `task=benchmark` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tokenreduce.inference.clock import LEVEL, coverage
from tokenreduce.output import table
from tokenreduce.viz.quantities import counted, quantity

Row = Mapping[str, Any]
SURE = 0.9
"""Coverage below which an interval is not worth its name."""
TIGHT: dict[str, Any] = {"padding": 0, "show_edge": False}
COLUMN = {"absolute": "ms", "relative": "time"}
"""Of `compared`: what a kind of slowness is read from."""


def measured(rows: Sequence[Row]) -> list[Table]:
    """A table per prompt: the unreduced model in its units, reductions as shares of that."""
    prompts: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        prompts.setdefault((row["tower"], row["visual_tokens"], row["batch"]), []).append(row)
    return [_prompt(group) for group in prompts.values()]


def _prompt(rows: Sequence[Row]) -> Table:
    one = rows[0]
    tower = ", with the vision tower" if one["tower"] else ""
    made = table(
        f"{one['visual_tokens']} visual and {one['text_tokens']} text tokens, "
        f"batch {one['batch']}{tower}",
        **TIGHT,
    )
    peers = any(row.get("original") is not None for row in rows)
    decoded, weighed = "decode_step" in one, one["peak_bytes"] is not None
    names = ["kept", "FLOPs", f"prefill{_sure(one['prefill'])}", *["orig."] * peers]
    names += ["step", "tok/s"] * decoded + ["KV cache"] + ["peak"] * weighed
    made.add_column("", overflow="fold")
    for name in names:
        made.add_column(name, justify="right", no_wrap=True)
    cells = ["unreduced", "", "", _ms(one["prefill"]["unreduced"])]
    cells += [""] * peers
    if decoded:
        cells.append(_ms(one["decode_step"]["unreduced"]))
        cells.append(_digits(one["tokens_per_second_full"]))
    cells.append(quantity(one["kv_bytes_full"], "B", 1024))
    if weighed:
        cells.append(quantity(one["peak_bytes_full"], "B", 1024))
    made.add_row(*cells)
    for row in rows:
        made.add_row(*_reduced(row, peers, decoded, weighed))
    return made


def _reduced(row: Row, peers: bool, decoded: bool, weighed: bool) -> list[str]:
    """The cells of a reduction: shares of the unreduced model's."""
    cells = [row["strategy"], f"{row['kept_share']:.0%}", f"{row['flops_share']['causal']:.2f}"]
    cells.append(_ratio(row["prefill"]["ratio"]["median_of_pairs"], row["prefill"]))
    if peers:
        old = row.get("original")
        cells.append("" if old is None else f"{old['prefill_ratio']:.2f}")
    if decoded:
        cells.append(f"{row['decode_step']['ratio']['median_of_pairs']:.2f}")
        cells.append(_digits(row["tokens_per_second"]))
    cells.append(f"{row['kv_bytes'] / row['kv_bytes_full']:.2f}")
    if weighed:
        cells.append(f"{row['peak_bytes'] / row['peak_bytes_full']:.2f}")
    return cells


def _ratio(value: float, found: Row) -> str:
    """A ratio of times with its interval, where there are rounds enough for one."""
    low, high = found["interval"]
    return f"{value:.2f} ({low:.2f}-{high:.2f})" if found["coverage"] >= SURE else f"{value:.2f}"


def _sure(found: Row) -> str:
    """What the interval of a column's ratios covers; nothing where there is none."""
    level = min(found["coverage"], LEVEL)
    return f" ({100 * level:.0f} %)" if level >= SURE else ""


def _ms(found: Row) -> str:
    return f"{_digits(found['median_ms'])} ms"


def _digits(value: float) -> str:
    """Three digits, more where the number has more before its point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def legend(rounds: int, clock: str) -> str:
    """What the numbers of `measured` are."""
    text = (
        f"Shares are of the unreduced model: FLOPs of the decoder layers (causal), time, bytes. "
        f"Medians of {counted(rounds, 'round')} in turn, {clock}."
    )
    if coverage(rounds) < SURE:
        text += " Too few for an interval: task.rounds=7 has one of 95 %."
    return text


def compared(rows: Sequence[Row], path: str, tolerance: float) -> Table:
    """Now over then."""
    slower = sum(bool(row["slower"]) for row in rows)
    made = table(
        f"against {path}",
        caption=f"{slower} of {len(rows)} slower by more than {tolerance:.0%}. ms: median time, "
        "now over then; time: reduced over unreduced, then and now.",
        **TIGHT,
    )
    for name in ("tokens", "batch", "strategy", "measure", "ms", "time", ""):
        right = name in ("tokens", "batch", "ms")
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(
            f"{row['visual_tokens']}{' + tower' * row['tower']}",
            str(row["batch"]),
            row["strategy"],
            row["measure"].replace("_", " "),
            f"{row['ms']:.2f} x",
            f"{row['ratio_then']:.2f} > {row['ratio_now']:.2f}",
            f"slower: {', '.join(COLUMN[kind] for kind in row['slower'])}" if row["slower"] else "",
            style="bold red" if row["slower"] else None,
        )
    return made


def broken_even(found: Mapping[str, Any]) -> Table:
    """Time ratios by the number of visual tokens."""
    columns = ("visual tokens", f"prefill time{_sure(found['rows'][0])}", "pays")
    made = table("break-even", columns, right=columns, caption=found["advice"], **TIGHT)
    for row in found["rows"]:
        made.add_row(
            str(row["visual_tokens"]), _ratio(row["ratio"], row), "yes" if row["pays"] else "no"
        )
    return made
