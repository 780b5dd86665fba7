"""`task=profile`: what a stop costs at every layer, and a schedule from it.

    tokenreduce task=profile
    tokenreduce task=profile strategy=fastv scheduler=pyramid positions=keep task.budget=0.4
    tokenreduce task=profile model=llava_1_5_7b data=llava data.path=rows.jsonl device=cuda
    tokenreduce --config-dir outputs/profile/<time> scheduler=profiled

Prints two tables, draws `profile.png`, and writes the schedule as `scheduler/<task.preset>.yaml`
into its folder. What was measured stands in `cells.jsonl`: with the same folder
(`hydra.run.dir=...`) it is not measured again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from tokenreduce.checks import one_of
from tokenreduce.config import build_scheduler, build_strategy, model_spec, public, refuse_shipped
from tokenreduce.data.conversations import Conversations, shapes_conversations
from tokenreduce.data.encoding import Encoder
from tokenreduce.data.rows import Conversation
from tokenreduce.errors import BadOption
from tokenreduce.evaluation.intervals import clustered
from tokenreduce.inference.loaded import load
from tokenreduce.presets import check_name
from tokenreduce.profiling import (
    Cell,
    Cells,
    Meter,
    Prices,
    Prompt,
    Sensitivity,
    Stops,
    alone,
    candidates,
    conversation,
    prompts_of,
    refine,
    sensitivity,
    write_preset,
)
from tokenreduce.profiling.cells import MEASURES
from tokenreduce.profiling.plot import draw
from tokenreduce.profiling.table import layers_table, schedules_table, way
from tokenreduce.program.sources import conversations, file_questions
from tokenreduce.scheduler import Scheduler
from tokenreduce.tasks import tasks
from tokenreduce.viz.quantities import counted

CELLS = "cells.jsonl"


@tasks.register("profile")
def profile(config: DictConfig, output: Path) -> dict[str, Any]:
    """Measures, searches, draws; returns every number.

    output: folder of this run.
    """
    task, given = config.task, build_scheduler(config)
    by = one_of(task.measure, MEASURES, "task.measure")
    check_name(str(task.preset), "task.preset")
    refuse_shipped("scheduler", str(task.preset), "task.preset")
    loaded = load(model_spec(config))
    meter = Meter(
        loaded.model,
        loaded.processor,
        asked(config, loaded.processor),
        build_strategy(config),
        config.positions,
        seed=config.seed,
        draws=task.draws,
        tokens=task.tokens,
        batch=task.batch,
        convention=str(task.convention),
        min_tokens=config.min_tokens,
    )
    prices = meter.prices
    layers = list(range(prices.depth)) if task.layers is None else list(task.layers)
    theirs = stops_of(given, prices.depth)
    budget = prices.share(theirs) if task.budget is None else float(task.budget)
    most = max(1, len(theirs)) if task.stops is None else int(task.stops)
    cells = Cells(output / CELLS, about(config, meter))
    total = 2 + len(layers) * len(task.keeps) + int(task.candidates) + int(task.trials)
    with _counted(cells, meter, total, task.progress) as measure:
        found = sensitivity(measure, layers, list(task.keeps), by)
        plans = candidates(found, prices, budget, most, int(task.grid))
        starts = [stops for _, stops in plans[: int(task.candidates)]]
        measure(theirs)
        ranked = refine(
            measure,
            starts if prices.share(theirs) > budget else [*starts, theirs],
            found,
            prices,
            budget,
            by,
            most,
            int(task.trials),
            1 / int(task.grid),
        )
    numbers = told(config, meter, cells, found, ranked, theirs, budget)
    best = ranked[0]
    preset = write_preset(output, str(task.preset), best.stops, comments(config, numbers))
    numbers["preset"] = str(preset)
    picture = draw(numbers, output / "profile.png")
    numbers["picture"] = None if picture is None else str(picture)
    console = Console()
    console.print(layers_table(numbers, f"{config.strategy.name}, one stop"))
    console.print(schedules_table(numbers))
    console.print(f"--config-dir {output} scheduler={task.preset}", highlight=False, soft_wrap=True)
    return numbers


def asked(config: DictConfig, processor: Any) -> list[Prompt]:
    """The prompts of a profile: `task.samples` questions.

    Of rendered scenes every question is asked alone; of other data `seed` draws rows, and the first
    question of each is asked. What `data.holdout` sets aside is left for tests.

    Raises:
        ValueError: as the readers of data, or nothing to ask.
    """
    data = config.data
    encoder = Encoder(processor, data.get("max_length"), data.get("prompt", "chat"))
    limit = int(config.task.samples)
    if limit < 1:
        raise BadOption(f"task.samples={limit} must be at least 1")
    return prompts_of(_questions(config, limit), encoder, limit, data.get("bad", "error"))


def _questions(config: DictConfig, limit: int) -> Iterator[Conversation]:
    data = config.data
    if data.name == "shapes":
        scenes = shapes_conversations(
            config.seed, data.split, limit, data.questions, data.difficulty
        )
        return islice((one for scene in scenes for one in alone(scene)), limit)
    rows: Sequence[Conversation] | Conversations
    if data.name == "questions":
        rows = [conversation(item) for item in file_questions(data)]
    else:
        rows = conversations(config).train
    order = random.Random(int(config.seed)).sample(range(len(rows)), len(rows))
    return (rows[i] for i in order)


def stops_of(scheduler: Scheduler, depth: int) -> Stops:
    """Layers and shares of a scheduler for a decoder of `depth` layers."""
    return tuple((stop.layer, stop.keep) for stop in scheduler.stops(depth))


def about(config: DictConfig, meter: Meter) -> dict[str, Any]:
    """What a cell depends on."""
    names = ("model", "data", "strategy", "positions", "seed", "min_tokens")
    parts = public(OmegaConf.masked_copy(config, list(names)), apart=True)
    task = {key: config.task[key] for key in ("samples", "tokens", "batch", "draws")}
    return {**parts, **task, **meter.fingerprint()}


def told(
    config: DictConfig,
    meter: Meter,
    cells: Cells,
    found: Sensitivity,
    ranked: Sequence[Cell],
    theirs: Stops,
    budget: float,
) -> dict[str, Any]:
    """The numbers of `result.json`."""
    prices, by = meter.prices, str(config.task.measure)
    whole = cells[()]

    def row(cell: Cell) -> dict[str, Any]:
        known = all(layer in found.layers and k >= found.keeps[0] for layer, k in cell.stops)
        return {
            **_plain(cell, meter),
            "flops_share": round(prices.share(cell.stops), 6),
            "predicted": round(found.predicted(cell.stops), 6) if known else None,
            "loss": round(cell.loss(by) - whole.loss(by), 6),
        }

    schedules = [row(cell) for cell in ranked]
    return {
        "measure": by,
        "budget": budget,
        "convention": prices.convention,
        "depth": prices.depth,
        "prompts": len(meter.prompts),
        "pictures": len(set(meter.pictures.tolist())),
        "tokens": {
            "visual": _mean(prices, 0),
            "text": _mean(prices, 1),
        },
        "layers": list(found.layers),
        "keeps": sorted(found.keeps, reverse=True),
        "full": _plain(whole, meter),
        "sensitivity": [row(cells[((a, k),)]) for a in found.layers for k in found.keeps],
        "given": row(cells[theirs]),
        "found": schedules[0],
        "schedules": schedules,
        "additivity": additivity([r for r in schedules if len(r["stops"]) > 1]),
        "cells": str(cells.path),
        "seconds_measuring": round(sum(cell.seconds for cell in cells), 1),
    }


def additivity(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How well losses that add up foretell those of several stops; None where too few are known.

    `error` is the mean difference (measured less predicted), `absolute` its mean size, `rank` the
    correlation of ranks (Spearman).
    """
    pairs = [(r["predicted"], r["loss"]) for r in rows if r["predicted"] is not None]
    if len(pairs) < 3:
        return None
    predicted, measured = np.array(pairs).T
    flat = np.ptp(predicted) == 0 or np.ptp(measured) == 0
    return {
        "schedules": len(pairs),
        "error": round(float((measured - predicted).mean()), 6),
        "absolute": round(float(np.abs(measured - predicted).mean()), 6),
        "rank": None if flat else round(float(spearmanr(predicted, measured).statistic), 4),
    }


def comments(config: DictConfig, numbers: dict[str, Any]) -> list[str]:
    """What stands above the schedule in its file."""
    best, given = numbers["found"], numbers["given"]
    name = config.model.get("id") or "the embedded model"
    return [
        f"Found by task=profile for {name}, strategy {config.strategy.name}: "
        f"{best['flops_share']:.4f} of the FLOPs ({numbers['convention']}).",
        f"{counted(numbers['prompts'], 'question')}, JSD {best['jsd']:.4f} bits; "
        f"{way(given['stops'])}: {given['jsd']:.4f} at {given['flops_share']:.4f}.",
    ]


def _plain(cell: Cell, meter: Meter) -> dict[str, Any]:
    """A cell without what each prompt gave; intervals, drawn over pictures, in its place."""
    row = {key: value for key, value in asdict(cell).items() if key != "each"}
    for key, values in cell.each.items():
        bounds = clustered(np.array(values), meter.pictures)
        row[f"{key}_interval"] = [float(f"{x:.4g}") for x in bounds]
    return row


def _mean(prices: Prices, which: int) -> float:
    total = sum(key[which] * number for key, number in prices.counts.items())
    return round(total / sum(prices.counts.values()), 2)


@contextmanager
def _counted(cells: Cells, meter: Meter, total: int, shown: bool | None) -> Iterator[Any]:
    """A `measure` that remembers, under a bar."""
    off = not (sys.stderr.isatty() if shown is None else shown)
    done: set[Stops] = set()
    with tqdm(total=total, disable=off, unit="cell", desc="profile") as bar:

        def measure(stops: Stops) -> Cell:
            cell = cells[stops] if stops in cells else cells.add(meter.measure(stops))
            if stops not in done:
                done.add(stops)
                bar.update()
            return cell

        yield measure
