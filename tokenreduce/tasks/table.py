"""The table that `task=generate` prints: the full model beside the reduced one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from tokenreduce.viz.quantities import quantity

__all__ = ["comparison", "quantity", "stages"]


def comparison(numbers: Mapping[str, Any], title: str) -> Table:
    """Answers, tokens, cost, time and probabilities, from the numbers of `result.json`."""
    report, answers = numbers["report"], numbers["answers"]
    said, times = f"FLOPs: {report['convention']}.", numbers["prefill_ms"]
    if times:
        said += (
            f" Time: vision encoder and decoder, {numbers['device']}, the median of "
            f"{len(times['full'])} runs in turn."
        )
    table = Table(
        title=escape(numbers["question"]),
        caption=said,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("full model")
    table.add_column(escape(title))
    row = table.add_row
    if numbers["expected"] is not None:
        row("right answer", escape(numbers["expected"]), "")
    row("answer", escape(answers["full"]), escape(answers["reduced"]), style="bold")
    row("visual tokens", str(report["visual_tokens"][0]), stages(report))
    share = report["flops"] / report["flops_full"]
    row(
        "prefill FLOPs",
        quantity(report["flops_full"], "", 1000),
        f"{quantity(report['flops'], '', 1000)}  ({share:.1%})",
    )
    if choosing := report.get("selection_flops"):
        row("choosing tokens, at most", "", f"{quantity(choosing, '', 1000)}")
    row(
        "KV cache of the prompt",
        quantity(report["kv_bytes_full"], "B", 1024),
        f"{quantity(report['kv_bytes'], 'B', 1024)}  "
        f"({report['kv_bytes'] / report['kv_bytes_full']:.1%})",
    )
    if times:
        full, short = (statistics.median(times[name]) for name in ("full", "reduced"))
        ratio = numbers["prefill_ratio"]
        row("prefill time", f"{full:.1f} ms", f"{short:.1f} ms  ({ratio:.2f} x)")
    for whose, text in answers.items():
        if whose == "full" or text != answers["full"]:
            chances = (f"{numbers['probability'][name][text]:.4f}" for name in answers)
            row(f"probability of the {'left' if whose == 'full' else 'right'} answer", *chances)
    return table


def stages(report: Mapping[str, Any]) -> str:
    """How many tokens go on from which layer, one line each."""
    if why := next(iter(report.get("skipped", ())), None):
        return f"as they are: {why}"
    counts = [f"{stop['kept'][0]} from layer {stop['layer']}" for stop in report["stops"]]
    return "\n".join([str(report["visual_tokens"][0]), *counts])
