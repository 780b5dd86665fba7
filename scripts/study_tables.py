"""Tables of the pages under docs/studies, from the results that are committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markdown import table

from tokenreduce.evaluation.intervals import clustered
from tokenreduce.evaluation.statistics import sign_flip

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
KINDS = (
    "read",
    "colour_of",
    "shape_of",
    "left_of",
    "count",
    "exist",
    "word",
    "where",
    "what_is_at",
)


@cache
def results(name: str) -> dict[str, Any]:
    """A committed results file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def conditions(name: str) -> str:
    """What the numbers of a study depend on."""
    found = results(name)
    machine, versions = found["machine"], found["versions"]
    return (
        f"{found['questions']} held-out questions about {found['pictures']} pictures, seed "
        f"{found['seed']}; {machine['processor']} CPU, {machine['threads']} thread, fp32; torch "
        f"{versions['torch']}, transformers {versions['transformers']}, Python "
        f"{versions['python']}; commit {str(found['commit'])[:9]}. Command: "
        f"`{found['command']}{_options(found['arguments'])}`."
    )


def depth() -> str:
    """Accuracy against the layer of the one stop."""
    cells = results("depth")["cells"]
    layers = sorted({int(name.rpartition(" ")[2]) for name in cells if name != "full"})
    columns = [("pyramid_drop", k) for k in (0.5, 0.25, 0.1)]
    columns += [("random", k) for k in (0.5, 0.25, 0.1, 0)]
    head = ["from layer", *(f"`{s}`, {k:.0%}" if k else "none left" for s, k in columns)]
    rows = [
        [str(layer), *(_percent(cells[f"{s} {k:g} from layer {layer}"]) for s, k in columns)]
        for layer in layers
    ]
    return table(head, rows)


def depth_kinds() -> str:
    """The same by type of question, a quarter left at random."""
    cells = results("depth")["cells"]
    layers = sorted({int(name.rpartition(" ")[2]) for name in cells if name != "full"})
    rows = []
    for layer in layers:
        kinds = cells[f"random 0.25 from layer {layer}"]["kinds"]
        rows.append([str(layer), *(f"{100 * kinds[k]['accuracy']:.0f}" for k in KINDS)])
    return table(["from layer", *(f"`{kind}`" for kind in KINDS)], rows)


def pyramid() -> str:
    """Schedules and strategies at equal FLOPs."""
    found = results("pyramid")
    cells, pictures = found["cells"], np.array(found["picture_of"])
    groups = list(dict.fromkeys(name.partition(", ")[2] for name in cells if name != "full"))
    rows = []
    for group in groups:
        shape, _, budget = group.rpartition(", ")
        drawn = [c for name, c in cells.items() if name.endswith(group) and "random" in name]
        shares = [100 * c["accuracy"] for c in drawn]
        named = [cells[f"{name}, {group}"] for name in ("pyramid_drop", "stride", "pooling")]
        spread = f"{sum(shares) / len(shares):.1f} ({min(shares):.1f}-{max(shares):.1f})"
        share = f"{named[0]['flops_share']:.2f}"
        change = _right(named[0]) - np.mean([_right(c) for c in drawn], axis=0)
        low, high = clustered(change, pictures)
        paired = f"{100 * change.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        rows.append([budget.split()[0], share, shape, *map(_percent, named), spread, paired])
    head = ["budget", "FLOPs ratio", "schedule", "`pyramid_drop`", "`stride`", "`pooling`",
            "`random`, five seeds (range)", "`pyramid_drop` less `random`, paired"]  # fmt: skip
    return table(head, rows)


def ablations() -> str:
    """Ratio, stages and positions."""
    cells = results("ablations")["cells"]
    names = list(dict.fromkeys(n.rpartition(", ")[0] for n in cells if n != "full"))
    rows = []
    for name in names:
        keep, compact = cells[f"{name}, keep"], cells[f"{name}, compact"]
        rows.append([name, f"{keep['flops_share']:.2f}", _percent(keep), _percent(compact)])
    return table(["schedule", "FLOPs ratio", "`keep`", "`compact`"], rows)


def training() -> str:
    """Arms of training against ways of asking."""
    found = results("training")
    cells = found["cells"]
    arms = list(dict.fromkeys(name.rpartition(" ")[0] for name in found["runs"]))
    asked = ("full", "pyramid_drop", "random")
    before = ["as shipped", *(_percent(cells["full" if a == "full" else f"untrained, asked {a}"])
              for a in asked)]  # fmt: skip
    rows = [before]
    for arm in arms:
        row = [f"trained: {arm}"]
        for a in asked:
            shares = [
                100 * c["accuracy"] for name, c in cells.items()
                if name.startswith(f"{arm} ") and name.endswith(f"asked {a}")
            ]  # fmt: skip
            low, high = _over_seeds(shares)
            row.append(f"{sum(shares) / len(shares):.1f} ({low:.1f} to {high:.1f})")
        rows.append(row)
    return table(["weights", *(f"asked: {a}" for a in asked)], rows)


def training_paired() -> str:
    """Every arm less the whole model's training of the same seed, on the same questions."""
    found = results("training")
    cells, asked = found["cells"], ("full", "pyramid_drop", "random")
    arms = list(dict.fromkeys(name.rpartition(" ")[0] for name in found["runs"]))
    seeds = sorted({name.rpartition(" ")[2] for name in found["runs"]})
    rows = []
    for arm in arms[1:]:
        row = [f"{arm} less {arms[0]}"]
        for a in asked:
            changes = [
                100 * (cells[f"{arm} {s}, asked {a}"]["accuracy"]
                       - cells[f"{arms[0]} {s}, asked {a}"]["accuracy"])
                for s in seeds
            ]  # fmt: skip
            low, high = _over_seeds(changes, -100.0)
            row.append(f"{sum(changes) / len(changes):+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append(row)
    return table(["arms", *(f"asked: {a}" for a in asked)], rows)


def training_runs() -> str:
    """What each arm took."""
    runs = results("training")["runs"]
    arms = list(dict.fromkeys(name.rpartition(" ")[0] for name in runs))
    rows = []
    for arm in arms:
        own = [run for name, run in runs.items() if name.rpartition(" ")[0] == arm]

        def mean(read: Callable[[Any], float], own: list[Any] = own) -> float:
            return sum(map(read, own)) / len(own)

        rows.append([
            arm, str(len(own)), f"{mean(lambda r: r['held_out_loss']['last']):.3f}",
            f"{mean(lambda r: r['seconds'] / r['steps']):.2f}",
                f"{mean(lambda r: r['tokens_per_second']):.0f}",
            f"{mean(lambda r: r['peak_memory_bytes']) / 2**30:.2f}",
        ])  # fmt: skip
    head = ["arm", "seeds", "held-out loss, as trained", "seconds per step, data included",
            "tokens per second",            "peak memory of the process, GiB"]  # fmt: skip
    return table(head, rows)


def step() -> str:
    """Time and memory of a training step, from the benchmark."""
    found = json.loads((RESULTS / "training_step_cpu.json").read_text())
    rows = []
    for entry in (b["extra_info"] for b in found["benchmarks"]):
        rows.append([
            entry["model"], str(entry["visual_tokens"]), f"`{entry['strategy']}`",
            "yes" if entry["checkpointed"] else "no", f"{entry['flops_ratio']:.3f}",
            f"**{entry['time_ratio']['of_minima']:.3f}**",
            f"{1 / entry['time_ratio']['of_minima']:.2f}", f"{entry['stored_ratio']:.3f}",
        ])  # fmt: skip
    head = ["layers x width", "visual tokens", "strategy", "checkpointed", "FLOPs ratio",
            "time ratio", "speed-up", "stored activations ratio"]  # fmt: skip
    return table(head, rows)


def profiled() -> str:
    """Found schedules against the pyramid, on questions that the profile has not seen."""
    rows = []
    for arm, row in results("profiled")["compared"].items():
        strategy, _, positions = arm.partition(", ")
        low, high = row["interval"]
        changes = zip(row["gained"], row["lost"], strict=True)
        stops = ", ".join(f"{k:.1%} from {layer}" if k else f"none from {layer}"
                          for layer, k in row["stops"])  # fmt: skip
        rows.append([
            f"`{strategy}`", f"`{positions}`", stops,
            *(f"{row['flops'][name]:.4f}" for name in ("found", "pyramid")),
            *(f"{100 * row[name]:.1f}" for name in ("found", "pyramid")),
            f"**{100 * row['difference']:+.1f}** ({100 * low:+.1f} to {100 * high:+.1f})",
            "; ".join(f"{gained}, {lost}" for gained, lost in changes),
            f"{_flipped(arm, row['seeds']):.1g}",
        ])  # fmt: skip
    head = ["strategy", "positions", "found: tokens kept", "FLOPs ratio, found", "pyramid",
            "right, found", "pyramid", "difference, paired", "answers gained, lost",
            "p"]  # fmt: skip
    return table(head, rows)


def _flipped(arm: str, seeds: list[int]) -> float:
    """The exact p of an arm's two schedules, over pictures, from the recorded answers."""
    found = results("profiled")
    strategy, _, positions = arm.partition(", ")
    change = np.zeros(len(found["picture_of"]))
    for seed in seeds:
        label = f"{strategy} {seed}" if len(seeds) > 1 else strategy
        own, other = (
            np.array([int(x) for x in found["cells"][f"{label}, {positions}, {name}"]["right"]])
            for name in ("found", "pyramid")
        )
        change += (own - other) / len(seeds)
    return sign_flip(change, np.array(found["picture_of"]), len(seeds))


def profiled_layers() -> str:
    """One stop at every layer, by attention."""
    found = results("profiled")["profiles"]["pyramid_drop, keep"]
    cells = {tuple(cell["stops"][0]): cell for cell in found["sensitivity"]}
    rows = [
        [str(layer), *(f"{cells[layer, k]['jsd']:.3f} ({100 * cells[layer, k]['right']:.0f})"
                       for k in found["keeps"])]
        for layer in found["layers"]
    ]  # fmt: skip
    head = ["from layer", *(f"{k:.0%} left" if k else "none left" for k in found["keeps"])]
    return table(head, rows)


def profiled_additivity() -> str:
    """Predicted and measured losses of schedules with several stops."""
    rows = []
    for arm, found in results("profiled")["profiles"].items():
        strategy, _, positions = arm.partition(", ")
        said, best, given = found["additivity"], found["found"], found["given"]
        rows.append([
            f"`{strategy}`", f"`{positions}`", str(said["schedules"]),
            f"{said['absolute']:.4f}", f"{said['error']:+.4f}",
            "–" if said["rank"] is None else f"{said['rank']:.2f}",
            *(f"{row['predicted']:.4f}, {row['loss']:.4f}" for row in (best, given)),
        ])  # fmt: skip
    head = ["strategy", "positions", "schedules", "mean size of the error",
            "mean error (measured less predicted)", "rank correlation",
            "found: predicted, measured", "pyramid: predicted, measured"]  # fmt: skip
    return table(head, rows)


T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantiles of Student's t for so many seeds."""


def _right(cell: dict[str, Any]) -> Any:
    """(n,) 1.0 at the answers that are right."""
    return np.array([float(x) for x in cell["right"]])


def _over_seeds(shares: list[float], least: float = 0.0) -> tuple[float, float]:
    """95 % interval of the mean over training seeds, between `least` and 100."""
    n, mean = len(shares), sum(shares) / len(shares)
    if n < 2:
        return least, 100.0
    spread = (sum((x - mean) ** 2 for x in shares) / (n - 1) / n) ** 0.5
    return max(least, mean - T95[n] * spread), min(100.0, mean + T95[n] * spread)


def _percent(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['accuracy']:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def _options(arguments: dict[str, Any]) -> str:
    usual = {"images": 60, "questions": 9}
    changed = {k: v for k, v in arguments.items() if k in usual and v != usual[k]}
    return "".join(f" --{key} {value}" for key, value in changed.items())


TABLES: dict[str, Callable[[], str]] = {
    "study-depth": depth,
    "study-depth-kinds": depth_kinds,
    "study-pyramid": pyramid,
    "study-ablations": ablations,
    "study-training": training,
    "study-training-paired": training_paired,
    "study-training-runs": training_runs,
    "study-training-step": step,
    "study-profiled": profiled,
    "study-profiled-layers": profiled_layers,
    "study-profiled-additivity": profiled_additivity,
    **{f"conditions-{n}": (lambda n=n: conditions(n))  # type: ignore[misc]
       for n in ("depth", "pyramid", "ablations", "training", "profiled")},
}  # fmt: skip
