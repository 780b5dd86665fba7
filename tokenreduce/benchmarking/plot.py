"""Pictures of a benchmark: time and memory against what is kept, and against what counts imply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.errors import BadOption
from tokenreduce.output import draws, figure

Row = Mapping[str, Any]


def wanted(choice: bool | None) -> bool:
    """Whether pictures are drawn: as chosen, else where matplotlib is installed.

    Raises:
        ValueError: they were asked for, and it is not.
    """
    there = draws()
    if choice and not there:
        raise BadOption(
            "task.plots=true needs matplotlib: pip install 'tokenreduce[bench]', or leave it out"
        )
    return there if choice is None else bool(choice)


def draw(
    rows: Sequence[Row], break_even: Mapping[str, Any] | None, title: str, folder: Path
) -> list[str]:
    """One picture per prompt and one of the break-even; returns their names in `folder`."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["visual_tokens"], row["batch"], row["tower"]), []).append(row)
    names = []
    for (visual, batch, tower), group in cells.items():
        whole = "_with_tower" * tower
        names.append(f"benchmark_{visual}_tokens_batch_{batch}{whole}.png")
        what = f"{title}, {visual} visual tokens{', with the tower' * tower}, batch {batch}"
        _cell(group, what, folder / names[-1])
    if break_even is not None:
        names.append("break_even.png")
        _break_even(break_even, title, folder / names[-1])
    return names


def _cell(rows: Sequence[Row], title: str, path: Path) -> None:
    panels = ["prefill", *(["decode_step"] if "decode_step" in rows[0] else []), "memory"]
    n = len(panels)
    with figure(path, 1, n, figsize=(4 * n, 3.6)) as (drawn, (axes,)):
        drawn.suptitle(title, fontsize=10)
        for axis, panel in zip(axes, panels, strict=True):
            axis.axhline(1, color="grey", linewidth=0.8)
            if panel == "memory":
                _memory(axis, rows)
            else:
                _times(axis, rows, panel)
            axis.set(xlabel="kept share of the visual tokens", xlim=(0, 1.02))
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.25)
            axis.legend(fontsize=8)


def _times(axis: Any, rows: Sequence[Row], panel: str) -> None:
    for name, group in _by_strategy(rows).items():
        kept = [row["kept_share"] for row in group]
        ratio = [row[panel]["ratio"]["median_of_pairs"] for row in group]
        low = [r - row[panel]["interval"][0] for r, row in zip(ratio, group, strict=True)]
        high = [row[panel]["interval"][1] - r for r, row in zip(ratio, group, strict=True)]
        axis.errorbar(kept, ratio, yerr=[low, high], marker="o", markersize=4, label=name)
    if panel == "prefill":
        points = sorted((row["kept_share"], row["flops_share"]["causal"]) for row in rows)
        axis.plot(*zip(*points, strict=True), "k--", marker="x", label="FLOPs, decoder, causal")
    axis.set_ylabel(f"{panel.replace('_', ' ')}: time over unreduced")


def _memory(axis: Any, rows: Sequence[Row]) -> None:
    for name, group in _by_strategy(rows).items():
        kept = [row["kept_share"] for row in group]
        cache = [row["kv_bytes"] / row["kv_bytes_full"] for row in group]
        line = axis.plot(kept, cache, "o-", markersize=4, label=f"{name}, KV cache")[0]
        if all(row["peak_bytes"] is not None for row in group):
            peak = [row["peak_bytes"] / row["peak_bytes_full"] for row in group]
            axis.plot(kept, peak, "s:", markersize=4, color=line.get_color(), label=f"{name}, peak")
    points = sorted((row["kept_share"], _tokens(row)) for row in rows)
    axis.plot(*zip(*points, strict=True), "k--", marker="x", label="tokens, mean over the layers")
    axis.set_ylabel("bytes over unreduced")


def _tokens(row: Row) -> float:
    """The share of all tokens that a layer has, averaged over the layers."""
    full = row["visual_tokens"] + row["text_tokens"]
    return float(sum(row["tokens_per_layer"]) / (full * len(row["tokens_per_layer"])))


def _break_even(found: Mapping[str, Any], title: str, path: Path) -> None:
    rows = found["rows"]
    ratio = [row["ratio"] for row in rows]
    low = [row["ratio"] - row["interval"][0] for row in rows]
    high = [row["interval"][1] - row["ratio"] for row in rows]
    counts = [row["visual_tokens"] for row in rows]
    implied = [row["flops_share"] for row in rows]
    with figure(path, figsize=(6, 3.6)) as (_, ((axis,),)):
        axis.errorbar(counts, ratio, yerr=[low, high], marker="o", markersize=4, label="measured")
        axis.plot(counts, implied, "k--", marker="x", label="FLOPs, decoder, causal")
        axis.axhline(1, color="grey", linewidth=0.8)
        if found["tokens"] is not None:
            axis.axvline(found["tokens"], color="tab:green", linestyle=":", label="break-even")
        axis.set(xscale="log", xlabel="visual tokens", ylabel="prefill: time over unreduced")
        axis.set_xticks(counts, [str(n) for n in counts], rotation=60, fontsize=8)
        axis.minorticks_off()
        axis.set_title(f"{title}: {found['strategy']}", fontsize=10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)


def _by_strategy(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: float(row["kept_share"])):
        found.setdefault(str(row["strategy"]), []).append(row)
    return found
