"""The tables that `task=benchmark` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from tokenreduce.tasks.table import quantity

Row = Mapping[str, Any]


def measured(rows: Sequence[Row]) -> list[Table]:
    """A table per prompt: the unreduced model in its units, then everyone as a share of that."""
    prompts: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        prompts.setdefault((row["tower"], row["visual_tokens"], row["batch"]), []).append(row)
    return [_prompt(group) for group in prompts.values()]


def _prompt(rows: Sequence[Row]) -> Table:
    one = rows[0]
    tower = ", with the vision tower" if one["tower"] else ""
    table = _table(
        f"{one['visual_tokens']} visual and {one['text_tokens']} text tokens, "
        f"batch {one['batch']}{tower}",
        None,
    )
    peers = any(row.get("original") is not None for row in rows)
    decoded, weighed = "decode_step" in one, one["peak_bytes"] is not None
    names = ["", "kept", "FLOPs", "prefill (95 %)", *["original's"] * peers]
    names += ["step", "tokens/s"] * decoded + ["KV cache"] + ["peak"] * weighed
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    cells = ["unreduced", "", "", f"{one['prefill']['unreduced']['median_ms']:.3g} ms"]
    cells += [""] * peers
    if decoded:
        cells.append(f"{one['decode_step']['unreduced']['median_ms']:.3g} ms")
        cells.append(f"{one['tokens_per_second_full']:.3g}")
    cells.append(quantity(one["kv_bytes_full"], "B", 1024))
    if weighed:
        cells.append(quantity(one["peak_bytes_full"], "B", 1024))
    table.add_row(*cells)
    for row in rows:
        low, high = row["prefill"]["interval"]
        ratio = row["prefill"]["ratio"]["median_of_pairs"]
        cells = [row["strategy"], f"{row['kept_share']:.0%}", f"{row['flops_share']['causal']:.2f}"]
        cells.append(f"{ratio:.2f} ({low:.2f}-{high:.2f})")
        if peers:
            old = row.get("original")
            cells.append("" if old is None else f"{old['prefill_ratio']:.2f}")
        if decoded:
            cells.append(f"{row['decode_step']['ratio']['median_of_pairs']:.2f}")
            cells.append(f"{row['tokens_per_second']:.3g}")
        cells.append(f"{row['kv_bytes'] / row['kv_bytes_full']:.2f}")
        if weighed:
            cells.append(f"{row['peak_bytes'] / row['peak_bytes_full']:.2f}")
        table.add_row(*cells)
    return table


def compared(rows: Sequence[Row], path: str, tolerance: float) -> Table:
    """Now over then."""
    slower = sum(bool(row["slower"]) for row in rows)
    table = _table(
        f"against {path}",
        f"{slower} of {len(rows)} slower by more than {tolerance:.0%}. ms: median time, now over "
        "then; time: reduced over unreduced, then and now.",
    )
    for name in ("tokens", "batch", "strategy", "measure", "ms", "time", ""):
        table.add_column(name, justify="right" if name in ("tokens", "batch", "ms") else "left")
    for row in rows:
        table.add_row(
            f"{row['visual_tokens']}{' + tower' * row['tower']}",
            str(row["batch"]),
            row["strategy"],
            row["measure"].replace("_", " "),
            f"{row['ms']:.2f} x",
            f"{row['ratio_then']:.2f} > {row['ratio_now']:.2f}",
            f"slower ({' and '.join(row['slower'])})" if row["slower"] else "",
            style="bold red" if row["slower"] else None,
        )
    return table


def broken_even(found: Mapping[str, Any]) -> Table:
    """Time ratios by the number of visual tokens."""
    table = _table("break-even", found["advice"])
    for name in ("visual tokens", "prefill time (95 %)", "pays"):
        table.add_column(name, justify="right")
    for row in found["rows"]:
        low, high = row["interval"]
        table.add_row(
            str(row["visual_tokens"]),
            f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})",
            "yes" if row["pays"] else "no",
        )
    return table


def _table(title: str, caption: str | None) -> Table:
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
