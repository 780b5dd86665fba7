"""`task=benchmark`: what a reduction saves in time and memory, against the unreduced model.

    tokenreduce task=benchmark
    tokenreduce task=benchmark model=llama_16x512 task.visual=[576,2880] task.keeps=[0.75,0.5,0.25]
    tokenreduce task=benchmark model=llava_1_5_7b task.weights=random model.dtype=bfloat16

All are measured in turn in the same rounds: the model without a reduction, the chosen strategy, and
those of `task.baselines`. Prints tables, writes `result.json`, draws pictures, and says from how
many visual tokens on the reduction pays on this device.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

import tokenreduce as tr
from tokenreduce.benchmarking import against
from tokenreduce.benchmarking import plot as plots
from tokenreduce.benchmarking import table as tables
from tokenreduce.benchmarking.breakeven import find
from tokenreduce.benchmarking.candidates import candidates, schedules_at
from tokenreduce.benchmarking.peers import peer
from tokenreduce.benchmarking.rounds import Candidate, Interleaved
from tokenreduce.benchmarking.subjects import Subject, subject
from tokenreduce.benchmarking.synthetic import MarkedPrompt
from tokenreduce.checks import integer, integers
from tokenreduce.config import build_scheduler, build_strategy, known, model_spec, plain
from tokenreduce.cost import DecoderShape, shape_of
from tokenreduce.errors import BadOption
from tokenreduce.inference.clock import Clock
from tokenreduce.program import result


def benchmark(config: DictConfig, output: Path) -> dict[str, Any]:
    """Measure, print, draw, compare; returns the numbers of the tables.

    output: folder of this run; pictures are written into it.
    """
    task = config.task
    settled(config)
    drawn = plots.wanted(task.plots)
    one = subject(model_spec(config), task.weights, config.image, config.prompt, int(task.text))
    before = None if task.against is None else against.read(str(task.against), one.identity)
    text, seed = int(task.text), int(config.seed)
    visual = None if task.visual is None else list(task.visual)
    prompts = one.prompts(visual, text, list(task.batches), seed)
    shape = shape_of(tr.unwrap(one.model).config)
    entered = [entered_by(config, shape, prompt.visual) for prompt in prompts]
    rows: list[dict[str, Any]] = []
    for prompt, those in zip(prompts, entered, strict=True):
        run = Interleaved(one.model, prompt, those, int(task.new_tokens), task.progress)
        rows += run.run(int(task.rounds)).rows()
    for row in rows:
        row["original"] = peer(one.identity, row)
    clock = Clock(one.model.device).name
    device = device_name(one.model.device)
    numbers: dict[str, Any] = {
        "subject": one.identity,
        "device": device,
        "clock": clock,
        "command": "tokenreduce " + " ".join(result.given()),
        "rows": rows,
    }
    title = f"{one.name} ({one.weights} weights), {numbers['subject']['dtype']}, {device}"
    console = Console()
    console.print(f"{title}\n")
    for table in tables.measured(rows):
        console.print(table)
        console.print()
    console.print(tables.legend(int(task.rounds), clock))
    if task.break_even is not None:
        numbers["break_even"] = broken_even(config, one)
        console.print(tables.broken_even(numbers["break_even"]))
    if before is not None:
        numbers["against"] = compared(config, before, numbers)
        console.print(tables.compared(numbers["against"], str(task.against), task.tolerance))
    if drawn:
        numbers["pictures"] = plots.draw(rows, numbers.get("break_even"), title, output)
    return numbers


def entered_by(config: DictConfig, shape: DecoderShape, visual: int) -> list[Candidate]:
    """The chosen strategy and those of `task.baselines`, under every schedule.

    Raises:
        ValueError: as `candidates` and `schedules_at`.
        KeyError: an unknown strategy in `task.baselines`.
    """
    keeps, strategies = config.task.keeps, {str(config.strategy.name): build_strategy(config)}
    for name in config.task.baselines or ():
        strategies.setdefault(str(name), known("strategy").build(str(name)))
    if keeps is None:
        schedules: list[Any] = [(None, build_scheduler(config))]
    else:
        schedules = schedules_at(list(keeps), plain(config.scheduler), shape, visual)
    return candidates(strategies, schedules, config.positions, int(config.seed))


def settled(config: DictConfig) -> None:
    """Refuses what could not be measured, before a model is loaded.

    Raises:
        ValueError: an option of the task that is no such number.
    """
    task = config.task
    for name in ("visual", "batches", "break_even"):
        if task[name] is not None or name == "batches":
            integers(task[name], f"task.{name}")
    for name, least in (("text", 1), ("rounds", 1), ("new_tokens", 0)):
        integer(task[name], f"task.{name}", least)
    if not isinstance(task.tolerance, int | float) or task.tolerance < 0:
        raise BadOption(f"task.tolerance must be a share such as 0.05, not {task.tolerance!r}")


def broken_even(config: DictConfig, one: Subject) -> dict[str, Any]:
    """From how many visual tokens on the chosen strategy pays, under its first schedule."""
    shape, measured = shape_of(tr.unwrap(one.model).config), {}

    def measure(visual: int) -> dict[str, Any]:
        prompt = MarkedPrompt(visual, int(config.task.text), 1, int(config.seed))
        chosen = entered_by(config, shape, visual)[:1]
        run = Interleaved(one.model, prompt, chosen, progress=config.task.progress)
        run.run(int(config.task.rounds), memory=False)
        row = measured[visual] = run.rows()[0]
        return {
            "ratio": row["prefill"]["ratio"]["median_of_pairs"],
            "interval": row["prefill"]["interval"],
            "coverage": row["prefill"]["coverage"],
            "flops_share": row["flops_share"]["causal"],
            "unreduced_ms": row["prefill"]["unreduced"]["median_ms"],
        }

    found = find(integers(config.task.break_even, "task.break_even"), measure)
    return {
        "strategy": str(config.strategy.name),
        "reduction": next(iter(measured.values()))["reduction"],
        "text_tokens": int(config.task.text),
        "tokens": found.tokens,
        "advice": found.advice(),
        "rows": found.rows,
    }


def compared(
    config: DictConfig, before: dict[str, Any], numbers: dict[str, Any]
) -> list[dict[str, Any]]:
    """This run against an earlier one; warns where the conditions were not the same."""
    here = {"machine": result.machine(), "versions": result.versions(), **numbers}
    other = against.differences(before, here)
    if other:
        warnings.warn(
            f"task.against={config.task.against} was made under other conditions "
            f"({'; '.join(other)}): read the ratios, not the milliseconds",
            stacklevel=2,
        )
    return against.compare(before, numbers["rows"], float(config.task.tolerance))


def device_name(device: torch.device) -> str:
    """The accelerator's name, or what kind of device it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
