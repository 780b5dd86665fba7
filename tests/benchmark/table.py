"""Tables of `docs/benchmarks.md` from a results file.

`python -m tests.benchmark.table` fills them in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenreduce.benchmarking.peers import recorded

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "prefill_cpu.json"
METHODS = ROOT / "docs" / "results" / "methods_cpu.json"
TASK, BATCHES, PEERS = (
    ROOT / "docs" / "results" / f"{name}.json"
    for name in ("benchmark_cpu", "benchmark_batches_cpu", "peers_cpu")
)
PAGE = ROOT / "docs" / "benchmarks.md"
ORIGINAL = {
    (f"{one['layers']}x{one['hidden']}", one["visual_tokens"]): (1 - one["prefill_ratio"])
    / (1 - one["flops_share"])
    for one in recorded()
    if one["code"] == "PyramidDrop"
}
"""Time saved over causal FLOPs saved, of the PyramidDrop code with the same shapes and clock."""

Entry = dict[str, Any]


def conditions(results: dict[str, Any]) -> str:
    """What the numbers depend on."""
    info = results["machine_info"]
    start, end = (" ".join(f"{x:.1f}" for x in info[f"load_at_{at}"]) for at in ("start", "end"))
    return (
        f"{info['cpu']}, {info['cpus']} CPUs, {info['threads']} thread, {info['device']}, "
        f"{info['dtype']}, {info['attention']}; torch {info['torch']}, transformers "
        f"{info['transformers']}, Python {info['python']}; seed {info['seed']}; "
        f"{results['datetime'][:16].replace('T', ' ')} UTC; load average {start} at the start and "
        f"{end} at the end."
    )


def prefill(entries: Iterable[Entry]) -> str:
    """`pyramid_drop` at every size, beside what was asked."""
    head = (
        "layers x width | visual tokens | FLOPs ratio, causal (square) | time ratio | "
        "wall time ratio | speed-up | time saved / FLOPs saved, causal | by medians | square | "
        "the original's | engine | scoring and gathering added"
    )
    rows = []
    for e in entries:
        causal, square, ratio = e["causal"], e["square"], e["time_ratio"]
        before = ORIGINAL.get((e["model"], e["visual_tokens"]))
        rows.append(
            f"{e['model']} | {e['visual_tokens']} | {causal['flops_ratio']:.3f} "
            f"({square['flops_ratio']:.3f}) | {ratio['of_minima']:.3f} | "
            f"{ratio['wall_of_minima']:.3f} | {1 / ratio['of_minima']:.2f} | "
            f"**{causal['saved_time_over_saved_flops']:.3f}** | {causal['by_medians']:.3f} | "
            f"{square['saved_time_over_saved_flops']:.3f} | {_or_none(before)} | "
            f"{e['engine_share']:.2%} | **{e['added_share']:.2%}**"
        )
    return _table(head, rows)


def scoring(entries: Iterable[Entry]) -> str:
    """Every strategy under its own schedule."""
    head = (
        "layers x width | strategy | visual tokens | FLOPs ratio, causal | time ratio | "
        "time saved / FLOPs saved | engine, ms | share of the prefill | added"
    )
    rows = [
        f"{e['model']} | `{e['strategy']}` | {e['visual_tokens']} | "
        f"{e['causal']['flops_ratio']:.3f} | {e['time_ratio']['of_minima']:.3f} | "
        f"{e['causal']['saved_time_over_saved_flops']:.3f} | {e['engine_ms']:.1f} | "
        f"{e['engine_share']:.2%} | {e['added_share']:.2%}"
        for e in entries
    ]
    return _table(head, rows)


def decode(entries: Iterable[Entry]) -> str:
    """Decoding steps."""
    head = (
        "layers x width | visual tokens | batch | positions | cache left | unreduced step, ms | "
        "reduced step, ms | ratio | of medians | median of pairs"
    )
    rows = []
    for e in entries:
        ratio = e["time_ratio"]
        rows.append(
            f"{e['model']} | {e['visual_tokens']} | {e['batch']}"
            f"{', padded' if e['padding'] else ''} | `{e['positions']}` | "
            f"{e['kv_bytes_ratio']:.3f} | {e['unreduced']['min_ms']:.2f} | "
            f"{e['reduced']['min_ms']:.2f} | **{ratio['of_minima']:.3f}** | "
            f"{ratio['of_medians']:.3f} | {ratio['median_of_pairs']:.3f}"
        )
    return _table(head, rows)


def methods(entries: Iterable[Entry]) -> str:
    """What every method costs at one prompt, cheapest first."""
    head = "method | stops | FLOPs ratio, causal | time ratio | engine, ms | added | within the aim"
    rows = [
        f"`{e['method']}` | {len(e['stops'])}, from layer {e['stops'][0][0]} | "
        f"{e['causal']['flops_ratio']:.3f} | {e['time_ratio']['of_minima']:.3f} | "
        f"{e['engine_ms']:.0f} | {e['added_share']:.1%} | "
        f"{'yes' if e['added_share'] <= e['asked'] else 'no'}"
        for e in sorted(entries, key=lambda e: float(e["added_share"]))
    ]
    return _table(head, rows)


TABLES: dict[str, Callable[[Iterable[Entry]], str]] = {
    "prefill": prefill,
    "scoring": scoring,
    "decode": decode,
}


def task(record: dict[str, Any]) -> str:
    """What `task=benchmark` has measured: shares of the unreduced model."""
    head = (
        "visual tokens | batch | strategy | kept | FLOPs ratio, causal | "
        "prefill time ratio (95 %) | decoding step | tokens/s, unreduced and reduced | "
        "KV cache ratio | peak memory ratio"
    )
    rows = []
    for e in record["rows"]:
        low, high = e["prefill"]["interval"]
        rows.append(
            f"{e['visual_tokens']} | {e['batch']} | `{e['strategy']}` | {e['kept_share']:.0%} | "
            f"{e['flops_share']['causal']:.3f} | "
            f"**{e['prefill']['ratio']['median_of_pairs']:.3f}** ({low:.3f} to {high:.3f}) | "
            f"{e['decode_step']['ratio']['median_of_pairs']:.3f} | "
            f"{e['tokens_per_second_full']:.1f}, {e['tokens_per_second']:.1f} | "
            f"{e['kv_bytes'] / e['kv_bytes_full']:.3f} | "
            f"{e['peak_bytes'] / e['peak_bytes_full']:.3f}"
        )
    return _table(head, rows)


def break_even(record: dict[str, Any]) -> str:
    """The time ratio against the number of visual tokens, and what follows."""
    found = record["break_even"]
    rows = [
        f"{e['visual_tokens']} | {e['flops_share']:.3f} | {e['ratio']:.3f} "
        f"({e['interval'][0]:.3f} to {e['interval'][1]:.3f}) | {'yes' if e['pays'] else 'no'}"
        for e in found["rows"]
    ]
    head = "visual tokens | FLOPs ratio, causal | prefill time ratio (95 %) | pays"
    return f"{_table(head, rows)}\n\n`{found['reduction']}`; printed: *{found['advice']}*."


def machine(record: dict[str, Any]) -> str:
    """What the numbers of a task depend on."""
    of, versions, commit = record["machine"], record["versions"], str(record["commit"])[:7]
    return (
        f"{record['device']}, {of['threads']} thread, {record['subject']['dtype']}, "
        f"{record['subject']['attention']}, {record['clock']}; torch {versions['torch']}, "
        f"transformers {versions['transformers']}; commit {commit}; seed "
        f"{record['config']['seed']}; `{record['command']}`"
    )


def peers(record: dict[str, Any]) -> str:
    """Packages of the field, each against its own unreduced model."""
    head = (
        "press | visual tokens | prefill time ratio (95 %) | decoding step | KV cache ratio | "
        "peak memory ratio"
    )
    rows = [
        f"`{e['press']}` | {e['visual_tokens']} | {e['prefill']['median_of_pairs']:.3f} "
        f"({e['prefill']['interval'][0]:.3f} to {e['prefill']['interval'][1]:.3f}) | "
        f"{e['decode_step']['median_of_pairs']:.3f} | {e['kv_bytes_ratio']:.3f} | "
        f"{e['peak_bytes_ratio']:.3f}"
        for e in record["rows"]
    ]
    return _table(head, rows)


def of_the_task(page: str) -> str:
    """The page with the blocks of the task's own results."""
    found, batches, others = (
        json.loads(path.read_text(encoding="utf-8")) for path in (TASK, BATCHES, PEERS)
    )
    return _filled(
        page,
        {
            "machine": machine(found),
            "task": task(found),
            "break-even": break_even(found),
            "machine of batches": machine(batches),
            "batches": task(batches),
            "peers": peers(others),
        },
    )


def fill(page: str, results: dict[str, Any], of_methods: dict[str, Any]) -> str:
    """The page with every `<!-- benchmark: name -->` block made anew."""
    blocks = {"conditions": conditions(results), "conditions of methods": conditions(of_methods)}
    blocks["methods"] = methods(b["extra_info"] for b in of_methods["benchmarks"])
    for group, table in TABLES.items():
        blocks[group] = table(b["extra_info"] for b in results["benchmarks"] if b["group"] == group)
    return _filled(of_the_task(page), blocks)


def _filled(page: str, blocks: dict[str, str]) -> str:
    for name, text in blocks.items():
        pattern = re.compile(rf"(<!-- benchmark: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, found = pattern.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if found != 1:
            raise ValueError(f"the page has {found} blocks named {name!r}, not one")
    return page


def _table(head: str, rows: list[str]) -> str:
    line = " | ".join("---" for _ in head.split(" | "))
    return "\n".join(f"| {row} |" for row in (head, line, *rows))


def _or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, METHODS)]
    made = fill(PAGE.read_text(encoding="utf-8"), *found)
    PAGE.write_text(made, encoding="utf-8")
