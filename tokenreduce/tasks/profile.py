"""`task=profile`: what a stop costs at every layer, and a schedule from it.

    tokenreduce task=profile
    tokenreduce task=profile strategy=fastv scheduler=pyramid positions=keep task.budget=0.4
    tokenreduce task=profile model=llava_1_5_7b data=llava data.path=rows.jsonl device=cuda
    tokenreduce --config-dir outputs/profile/<time> scheduler=profiled

Prints two tables, draws `profile.png`, and writes the schedule as `scheduler/<task.preset>.yaml`
into its folder. What was measured is in `cells.jsonl`: with the same folder
(`hydra.run.dir=...`) it is not measured again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from tqdm.auto import tqdm

from tokenreduce.checks import one_of
from tokenreduce.config import (
    build_reader,
    build_scheduler,
    build_strategy,
    model_spec,
    plain,
    public,
    refuse_shipped,
)
from tokenreduce.data.encoding import Encoder
from tokenreduce.errors import BadOption
from tokenreduce.inference.loaded import load
from tokenreduce.presets import check_name, stops_of
from tokenreduce.profiling import (
    Cells,
    Measurement,
    Prompt,
    ScheduleEvaluator,
    Stops,
    candidates,
    options,
    prompts_of,
    refine,
    sensitivity,
    write_preset,
)
from tokenreduce.profiling.cells import MEASURES
from tokenreduce.profiling.plot import draw
from tokenreduce.profiling.summary import summary
from tokenreduce.profiling.table import layers_table, schedules_table, way
from tokenreduce.viz.quantities import counted

CELLS = "cells.jsonl"


def profile(config: DictConfig, output: Path) -> dict[str, Any]:
    """Measures, searches, draws; returns every number.

    output: folder of this run.
    """
    task, given = config.task, build_scheduler(config)
    options.check(plain(task))
    by = one_of(task.measure, MEASURES, "task.measure")
    check_name(str(task.preset), "task.preset")
    refuse_shipped("scheduler", str(task.preset), "task.preset")
    loaded = load(model_spec(config))
    meter = ScheduleEvaluator(
        loaded.model,
        loaded.processor,
        prompts_for(config, loaded.processor),
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
    numbers = summary(meter, cells, found, ranked, theirs, budget, by)
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


def prompts_for(config: DictConfig, processor: Any) -> list[Prompt]:
    """The prompts of a profile: `task.samples` questions.

    Which, and in which order, is for the reader of the data to say; of rows `seed` draws some, and
    the first question of each is asked. What `data.holdout` sets aside is left for tests.

    Raises:
        ValueError: as the readers of data, or nothing to ask.
    """
    reader = build_reader(config)
    encoder = Encoder(processor, reader.max_length, reader.prompt)
    limit = int(config.task.samples)
    if limit < 1:
        raise BadOption(f"task.samples={limit} must be at least 1")
    return prompts_of(reader.prompts(limit, int(config.seed)), encoder, limit, reader.bad)


def about(config: DictConfig, meter: ScheduleEvaluator) -> dict[str, Any]:
    """What a cell depends on."""
    names = ("model", "data", "strategy", "positions", "seed", "min_tokens")
    parts = public(OmegaConf.masked_copy(config, list(names)), apart=True)
    task = {key: config.task[key] for key in ("samples", "tokens", "batch", "draws")}
    return {**parts, **task, **meter.fingerprint()}


def comments(config: DictConfig, numbers: dict[str, Any]) -> list[str]:
    """What is written above the schedule in its file."""
    best, given = numbers["found"], numbers["given"]
    name = config.model.get("id") or "the embedded model"
    return [
        f"Found by task=profile for {name}, strategy {config.strategy.name}: "
        f"{best['flops_share']:.4f} of the FLOPs ({numbers['convention']}).",
        f"{counted(numbers['prompts'], 'question')}, JSD {best['jsd']:.4f} bits; "
        f"{way(given['stops'])}: {given['jsd']:.4f} at {given['flops_share']:.4f}.",
    ]


@contextmanager
def _counted(
    cells: Cells, meter: ScheduleEvaluator, total: int, shown: bool | None
) -> Iterator[Any]:
    """A `measure` that remembers, under a bar."""
    off = not (sys.stderr.isatty() if shown is None else shown)
    done: set[Stops] = set()
    with tqdm(total=total, disable=off, unit="cell", desc="profile") as bar:

        def measure(stops: Stops) -> Measurement:
            cell = cells[stops] if stops in cells else cells.add(meter.measure(stops))
            if stops not in done:
                done.add(stops)
                bar.update()
            return cell

        yield measure
