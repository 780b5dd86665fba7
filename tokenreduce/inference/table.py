"""The table that `task=generate` prints: the full model next to the reduced one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tokenreduce.output import table
from tokenreduce.viz.quantities import counted, quantity


def comparison(numbers: Mapping[str, Any], title: str) -> Table:
    """Answers, tokens, cost, time and probabilities, from the numbers of `result.json`."""
    report, answers, times = numbers["report"], numbers["answers"], numbers["prefill_ms"]
    columns = ("", "full model", escape(title))
    made = table(escape(numbers["question"]), columns, caption=_caption(numbers))
    row = made.add_row
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
        row("selection FLOPs", "", f"up to {quantity(choosing, '', 1000)}")
    row(
        "KV cache of the prompt",
        quantity(report["kv_bytes_full"], "B", 1024),
        f"{quantity(report['kv_bytes'], 'B', 1024)}  "
        f"({report['kv_bytes'] / report['kv_bytes_full']:.1%})",
    )
    if times:
        full, short = (statistics.median(times[name]) for name in ("full", "reduced"))
        share = numbers["prefill_ratio"]
        row("prefill time", f"{full:.1f} ms", f"{short:.1f} ms  ({share:.1%})")
    for text in dict.fromkeys(answers.values()):
        chances = (f"{numbers['probability'][name][text]:.4f}" for name in answers)
        row(escape(f"probability of {shortened(text)!r}"), *chances)
    return made


def shortened(text: str, most: int = 16) -> str:
    """The beginning of an answer, where all of it would make the column wide."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _caption(numbers: Mapping[str, Any]) -> str:
    """How the numbers were counted and measured, and what a reduction that saves no time means."""
    times, report = numbers["prefill_ms"], numbers["report"]
    text = f"FLOPs: {report['convention']}."
    if times:
        runs = counted(len(times["full"]), "run")
        text += (
            f" Time: vision encoder and decoder, {numbers['device']}, the median of {runs} in turn."
        )
    if times and numbers["prefill_ratio"] >= 1 and not any(report.get("skipped", ())):
        text += (
            f" No time is saved here: {report['visual_tokens'][0]} visual tokens in a model of this"
            " size are too few; task=benchmark says from how many on it pays."
        )
    return text


def stages(report: Mapping[str, Any]) -> str:
    """How many tokens go on from which layer, one line each."""
    if why := next(iter(report.get("skipped", ())), None):
        return f"as they are: {why}"
    counts = [f"{stop['kept'][0]} from layer {stop['layer']}" for stop in report["stops"]]
    return "\n".join([str(report["visual_tokens"][0]), *counts])
