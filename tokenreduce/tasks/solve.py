"""`task=solve`: from a target to the schedule that keeps the most tokens within it.

    tokenreduce task=solve target.flops=0.45
    tokenreduce task=solve model=llava_1_5_7b scheduler=single target.average=192 task.save=mine
    tokenreduce task=solve model=llama_16x512 task.visual=576 target.ms=60

The rule is that of `scheduler=...`; what it keeps is what is looked for. Targets but milliseconds
need the sizes of the model alone. Prints the schedule, its cost and the words that choose it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

import tokenreduce as tr
from tokenreduce import presets
from tokenreduce.checks import integer
from tokenreduce.config import build_recipe, model_spec, refuse_shipped
from tokenreduce.cost import (
    Grid,
    connector_of,
    shape_of,
    tower_of,
)
from tokenreduce.errors import BadOption
from tokenreduce.inference.loaded import read_sizes
from tokenreduce.program.rules import chosen, rule_of
from tokenreduce.solving import fallback, table, timing
from tokenreduce.solving.search import by_share
from tokenreduce.solving.summary import summary

TARGETS = ("average", "flops", "kv_bytes", "ms")


def solve(config: DictConfig, output: Path) -> dict[str, Any]:
    """Find, print, save; returns the numbers of the tables.

    output: folder of this run; with `task.save` it gets `conf/scheduler/<name>.yaml`.
    """
    target, goal = only_target(config)
    rule, options = rule_of(config)
    if config.task.save is not None:
        presets.check_name(str(config.task.save), "task.save")
        refuse_shipped("scheduler", str(config.task.save), "task.save")
    ms = None
    if target == "ms":
        ms, sizes, visual, text = by_time(config, float(goal), rule, options)
        scheduler = by_share(rule, options)(ms.share)
    else:
        sizes, _ = read_sizes(model_spec(config))
        visual, text = visual_tokens(config, sizes), int(config.task.text)
        scheduler = by_target(config, sizes, {target: goal}, visual, text)
        rule = tr.schedulers.name_of(scheduler)
    answer = summary(
        sizes,
        scheduler,
        visual,
        text,
        pictures(config),
        convention=str(config.task.convention),
        width=float(config.task.bytes_per_value),
    )
    if ms is not None:
        points = [[share, took] for share, took in ms.points.items()]
        answer["ms"] = {
            "measured": ms.ms,
            "unreduced": ms.unreduced,
            "points": points,
            "clock": ms.clock,
        }
    answer["words"] = presets.words(scheduler, str(config.strategy.name))
    console = Console()
    console.print(f"{config.model.name}: {visual} visual and {text} other tokens, {target}={goal}")
    console.print(table.stops(answer))
    console.print(table.costs(answer, str(config.task.convention)))
    print("tokenreduce", *answer["words"])
    if config.task.save is not None:
        says = (
            f"Found by task=solve target.{target}={goal} for {config.model.name}, {visual} tokens."
        )
        folder = output / "conf"
        answer["preset"] = str(
            presets.write_preset(folder, str(config.task.save), scheduler, [says])
        )
        print(f"tokenreduce --config-dir {folder} scheduler={config.task.save}")
    return {"target": {target: goal}, "rule": rule, "model": str(config.model.name), **answer}


def by_target(
    config: DictConfig, sizes: Any, target: dict[str, Any], visual: int, text: int
) -> tr.Scheduler:
    """The schedule that meets a target which the sizes of the model tell.

    Where the command line names no scheduler and the strategy's own would leave next to no tokens,
    a pyramid that begins earlier is taken, and said; a scheduler that is named is kept, with a
    warning.

    Raises:
        ValueError: no rule meets the target.
    """
    rule, options = rule_of(config)
    depth, named = shape_of(sizes).layers, chosen()
    tried: list[tr.Scheduler | ValueError] = []
    for name, others in [*fallback.families(rule, options, depth)][: 1 if named else None]:
        exactly: dict[str, Any] = {
            "convention": str(config.task.convention),
            "bytes_per_value": float(config.task.bytes_per_value),
        }
        try:
            one = tr.solve(
                sizes, visual=visual, text=text, rule=name, **exactly, **target, **others
            )
        except ValueError as error:
            tried.append(error)
            continue
        tried.append(one)
        if fallback.vanishing(one, depth, visual) is None:
            if name != rule:
                print(f"{rule} as it is would leave next to no tokens: {name} stops earlier")
            return one
    own = tried[0]
    if isinstance(own, ValueError):
        raise own
    if (stop := fallback.vanishing(own, depth, visual)) is not None:
        warnings.warn(
            f"{stop.count(visual)} of {visual} visual tokens are left from layer {stop.layer} on: "
            "raise the target, or stop earlier, as scheduler=explicit scheduler.layers=[0,...] or "
            "scheduler=input does",
            stacklevel=2,
        )
    return own


def only_target(config: DictConfig) -> tuple[str, Any]:
    """The name and the value of the one target.

    Raises:
        ValueError: none, several, or milliseconds that are no positive number.
    """
    given = {name: config.target[name] for name in TARGETS if config.target[name] is not None}
    if len(given) != 1:
        raise BadOption(
            f"task=solve takes exactly one of {', '.join(f'target.{name}=...' for name in TARGETS)}"
            f", not {' and '.join(given) or 'none'}"
        )
    ((name, goal),) = given.items()
    number = isinstance(goal, int | float) and not isinstance(goal, bool)
    if name == "ms" and not (number and goal > 0):
        raise BadOption(f"target.ms must be a number of milliseconds above 0, not {goal!r}")
    return name, goal


def visual_tokens(config: DictConfig, sizes: Any) -> int:
    """The visual tokens of a prompt: as asked, or those that the model makes of its pictures.

    Raises:
        ValueError: the model's sizes do not tell.
    """
    if config.task.visual is not None:
        return integer(config.task.visual, "task.visual", least=1)
    try:
        tower = tower_of(sizes)
        found = connector_of(sizes, tower, shape_of(sizes).hidden).tokens(
            tower.grids(pictures(config))
        )
    except ValueError as error:
        raise BadOption(f"task.visual=... is needed, visual tokens of a prompt: {error}") from None
    if not found:
        raise BadOption(
            "task.visual=... is needed, visual tokens of a prompt: how many these pictures become "
            "depends on how their tiles are arranged"
        )
    return found


def pictures(config: DictConfig) -> int | list[Grid]:
    """What the vision tower is given: a number of pictures, or their patches.

    Raises:
        ValueError: neither a whole number nor a list of [rows, columns] or [frames, rows, columns].
    """
    given = config.task.pictures
    if isinstance(given, int) and not isinstance(given, bool):
        return integer(given, "task.pictures", least=0)
    rows = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    sides = [list(row) for row in rows if isinstance(row, Sequence) and len(row) in (2, 3)]
    if not rows or len(sides) < len(rows):
        raise BadOption(
            "task.pictures must be a whole number, or patches as [[rows, columns]] or "
            f"[[frames, rows, columns]], not {given!r}"
        )
    return [Grid(row[-2], row[-1], frames=row[0] if len(row) == 3 else 1) for row in sides]


def by_time(
    config: DictConfig, goal: float, rule: str, options: dict[str, Any]
) -> tuple[timing.Found, Any, int, int]:
    """Measures shares on this device; returns what was found, sizes, visual and text tokens."""
    from tokenreduce.benchmarking.rounds import Candidate, Interleaved
    from tokenreduce.benchmarking.subjects import subject
    from tokenreduce.inference.clock import Clock

    task = config.task
    one = subject(model_spec(config), task.weights, config.image, config.prompt, int(task.text))
    build = by_share(rule, options)
    sizes = tr.unwrap(one.model).config
    asked = config.task.visual
    visual = None if asked is None else [integer(asked, "task.visual", least=1)]
    # a picture runs the vision tower as well, but has the tokens that the family gives it
    prompt = one.prompts(visual, int(config.task.text), [1], int(config.seed))[-1 if asked else 0]
    recipe, first = replace(build_recipe(config), logits="full", min_tokens=0), []

    def measure(shares: Sequence[float]) -> list[float]:
        those = [
            Candidate(str(share), replace(recipe, scheduler=build(share)), share)
            for share in shares
        ]
        run = Interleaved(one.model, prompt, those).run(int(config.task.rounds), memory=False)
        rows = [row["prefill"] for row in run.rows()]
        first.append(rows[0]["unreduced"]["median_ms"])
        # against the unreduced model of the same rounds: a machine may slow down in between
        return [first[0] * row["ratio"]["median_of_pairs"] for row in rows]

    depth = shape_of(sizes).layers

    def same(a: float, b: float) -> bool:
        made = (build(share).stops(depth) for share in (a, b))
        counts = [[stop.count(prompt.visual) for stop in stops] for stops in made]
        return counts[0] == counts[1]

    shares = sorted({float(share) for share in config.task.shares} | {0.0})
    points = dict(zip(shares, measure(shares), strict=True))
    found = timing.find(goal, first[0], points, measure, same, int(config.task.tries))
    found.clock = Clock(one.model.device).name
    return found, sizes, prompt.visual, prompt.text
