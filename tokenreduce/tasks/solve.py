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
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

import tokenreduce as tr
from tokenreduce import presets
from tokenreduce.checks import integer
from tokenreduce.config import build_strategy, model_spec, refuse_shipped
from tokenreduce.cost import (
    Cost,
    DecoderShape,
    Grid,
    ModelCost,
    activations,
    average_tokens,
    connector_of,
    cost,
    model_cost,
    shape_of,
    tower_of,
)
from tokenreduce.errors import BadOption
from tokenreduce.inference.loaded import read_sizes
from tokenreduce.program.rules import chosen, rule_of
from tokenreduce.solving import fallback, table, timing
from tokenreduce.solving.search import by_share

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
    answer = told(config, sizes, scheduler, visual, text)
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


def told(
    config: DictConfig, sizes: Any, scheduler: tr.Scheduler, visual: int, text: int
) -> dict[str, Any]:
    """A schedule and what it costs, as plain data.

    The vision tower is left out where its sizes are not known, or where nobody says which pictures
    it is given.
    """
    shape = shape_of(sizes)
    convention, width = str(config.task.convention), float(config.task.bytes_per_value)
    made = scheduler.stops(shape.layers)
    price = cost(shape, made, visual, text, convention, width)
    unknown, whole_model = None, None
    try:
        whole_model = model_cost(
            sizes,
            made,
            pictures(config),
            visual,
            text,
            convention=convention,
            bytes_per_value=width,
        )
    except ValueError as error:
        unknown = str(error)
    return {
        "scheduler": presets.options_of(scheduler),
        "stops": [[stop.layer, stop.keep, stop.count(visual)] for stop in made],
        "visual": visual,
        "text": text,
        "stages": stages(price.tokens_per_layer, text),
        "average_tokens": average_tokens(made, shape.layers, visual),
        "flops_share": price.share,
        "kv_share": price.kv_bytes / price.kv_bytes_full,
        "model_share": None if whole_model is None else whole_model.share,
        "flops": _flops(price, whole_model),
        "bytes": _bytes(shape, price, visual + text, whole_model, width),
        "tower_unknown": unknown,
    }


def stages(tokens: Sequence[int], text: int) -> list[dict[str, Any]]:
    """Runs of layers that work on the same number of visual tokens."""
    found: list[dict[str, Any]] = []
    for layer, n in enumerate(tokens):
        if found and found[-1]["visual"] == n - text:
            found[-1]["layers"][1] = layer
        else:
            found.append({"layers": [layer, layer], "visual": n - text})
    return found


def by_time(
    config: DictConfig, goal: float, rule: str, options: dict[str, Any]
) -> tuple[timing.Found, Any, int, int]:
    """Measures shares on this device; returns what was found, sizes, visual and text tokens."""
    from tokenreduce.benchmarking.rounds import Candidate, Race
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
    strategy, first = build_strategy(config), []

    def measure(shares: Sequence[float]) -> list[float]:
        those = [
            Candidate(str(share), strategy, build(share), config.positions, int(config.seed), share)
            for share in shares
        ]
        race = Race(one.model, prompt, those).run(int(config.task.rounds), memory=False)
        rows = [row["prefill"] for row in race.rows()]
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


def _flops(price: Cost, whole_model: ModelCost | None) -> list[list[Any]]:
    """Rows of a table: name, unreduced, reduced."""
    if whole_model is None:
        per_mac = price.flops_full // price.macs_full if price.macs_full else 1
        rows = [
            ("decoder layers", price.flops_full, price.flops),
            ("token selection, at most", 0, per_mac * price.selection_macs),
        ]
    else:
        rows = whole_model.rows()
        rows.append(("whole model", whole_model.flops_full, whole_model.flops))
    return [list(row) for row in rows]


def _bytes(
    shape: DecoderShape, price: Cost, full: int, whole_model: ModelCost | None, width: float
) -> list[list[Any]]:
    """The same of bytes: the cache, and the activations of a prefill and of training."""
    if whole_model is None:
        before = activations(shape, (full,) * shape.layers, width)
        after = activations(shape, price.tokens_per_layer, width)
    else:
        before, after = whole_model.activations_full, whole_model.activations
    return [
        ["KV cache", price.kv_bytes_full, price.kv_bytes],
        ["activations of a prefill", before.prefill, after.prefill],
        ["activations kept in training", before.stored, after.stored],
        ["the same, checkpointed", before.checkpointed, after.checkpointed],
    ]
