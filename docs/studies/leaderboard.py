"""Every strategy under the same four schedules, at half of the FLOPs, on the embedded model.

    python docs/studies/leaderboard.py

Runs `task=evaluate` for each; positions stay for all. Answers are kept in the folder `--folder`,
so that a killed run goes on. Writes docs/results/leaderboard.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig

import tokenreduce as tr
from tokenreduce.config import compose
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.comparing import Level
from tokenreduce.evaluation.records import Store
from tokenreduce.evaluation.table import collect
from tokenreduce.tasks import evaluate

BUDGET = 0.5
RULES: dict[str, dict[str, Any]] = {
    "before the model": {"rule": "single", "layer": 0},
    "at layer 2": {"rule": "single", "layer": 2},
    "pyramid": {"rule": "pyramid", "stages": 4},
}
FOUND = "found"
"""What `task=profile` has found for pyramid_drop, at the FLOPs of the pyramid."""
OWN = ("none", "vtw", "scorer_mlp", "downsample", "random", "stride", "pooling")
"""Strategies that are not rows: references, baselines (always run), or in need of training."""
PROMPT = 16  # text tokens that the FLOPs are counted with


def schedules() -> dict[str, list[str]]:
    """The options of each schedule that costs the budget, by its name."""
    shape = AutoConfig.from_pretrained(checkpoint_dir())
    found = {}
    for name, options in RULES.items():
        made: Any = tr.solve(
            shape, visual=shape.image_seq_length, text=PROMPT, flops=BUDGET, **options
        )
        free = {"pyramid": "ratio", "single": "keep"}[options["rule"]]
        known = [f"scheduler.{k}={v}" for k, v in options.items() if k != "rule"]
        value = round(getattr(made, free), 4)
        found[name] = [f"scheduler={options['rule']}", *known, f"scheduler.{free}={value}"]
    return {**found, FOUND: ["scheduler=profiled_tiny"]}


def main() -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images", type=int, default=60, help="held-out pictures, 9 questions each"
    )
    parser.add_argument("--folder", default="outputs/leaderboard", help="of the answers")
    parser.add_argument("--output", default="docs/results/leaderboard.json")
    parser.add_argument("--only", help="of these schedules, by name")
    parser.add_argument("--table", action="store_true", help="only make the table anew")
    parser.add_argument("--smoke", action="store_true", help="a few questions, for CI")
    given = parser.parse_args()
    names = [name for name in tr.strategies if name not in OWN]
    rules = schedules()
    more = ["task.timed=4", "task.runs=5", "task.looks=0"]
    if given.smoke:
        given.images, given.folder, given.output = 1, "outputs/smoke/leaderboard", None
        names, rules = ["fastv"], {"at layer 2": rules["at layer 2"]}
        more = ["task.timed=1", "task.runs=1", "task.followed=2", "task.looks=1"]
    refused = []
    for rule, schedule in rules.items():
        wanted = not given.table and given.only in (None, rule)
        for name in names if wanted else ():
            words = [
                "task=evaluate", "device=cpu", "positions=keep", f"strategy={name}", *schedule,
                "data.questions=9", f"task.limit={9 * given.images}", *more,
                f"task.folder={given.folder}",
            ]  # fmt: skip
            config = compose(words)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    evaluate.evaluate(config, Path(given.folder))
            except (ValueError, TypeError) as error:
                refused.append({"strategy": name, "schedule": rule, "reason": str(error)})
                print(f"{name}, {rule}: {error}", file=sys.stderr)
    if given.smoke and refused:
        raise SystemExit(1)
    rows, notes = collect(Path(given.folder), Level())
    table: dict[str, Any] = {"level": asdict(Level()), "notes": notes, "rows": rows}
    table["refused"] = refused
    table["schedules"] = rules
    table["command"] = "python docs/studies/leaderboard.py"
    table["arguments"] = {"images": given.images}
    table["head"] = Store(Path(given.folder) / "tiny").head
    if given.output:
        text = json.dumps(table, indent=1, ensure_ascii=False)
        Path(given.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
