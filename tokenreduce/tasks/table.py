"""The table that `task=generate` prints: the full model beside the reduced one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table


def comparison(numbers: Mapping[str, Any], title: str) -> Table:
    """Answers, tokens, cost, time and probabilities, from the numbers of `result.json`."""
    report, answers = numbers["report"], numbers["answers"]
    table = Table(
        title=escape(numbers["question"]),
        caption=f"FLOPs: {report['convention']}. Time: vision encoder and decoder, "
        f"{numbers['device']}, the median of {len(numbers['prefill_ms']['full'])} runs in turn.",
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
    row(
        "KV cache of the prompt",
        quantity(report["kv_bytes_full"], "B", 1024),
        f"{quantity(report['kv_bytes'], 'B', 1024)}  "
        f"({report['kv_bytes'] / report['kv_bytes_full']:.1%})",
    )
    times = {name: statistics.median(row) for name, row in numbers["prefill_ms"].items()}
    row(
        "prefill time",
        f"{times['full']:.1f} ms",
        f"{times['reduced']:.1f} ms  ({numbers['prefill_ratio']:.2f} x)",
    )
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


def quantity(value: float, unit: str, base: int) -> str:
    """`value` with three digits and a prefix: 1.23 G, or 1.20 MiB where the base is 1024."""
    prefixes = ("", "k", "M", "G", "T", "P") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}".rstrip()
