"""`task=evaluate`: the same questions, with and without reduction, compared in pairs.

    tokenreduce task=evaluate strategy=fastv
    tokenreduce task=evaluate strategy=pyramid_drop,fastv task.flops=0.5 -m     one table of all
    tokenreduce task=evaluate data=questions data.path=questions.jsonl model.id=path
    accelerate launch --num_processes 2 -m tokenreduce task=evaluate ...

Every run also asks the unreduced model, baselines under the same schedule, and harmless
changes of the input. Answers are kept in the folder and used again: a killed run goes on, and the
runs of a sweep share what they have in common. Writes `table.json`, `table.csv`, pictures, and
`report.html` to look at some of the questions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from tokenreduce.config import build_reader, build_recipe, build_strategy, model_spec, plain
from tokenreduce.data.items import Item
from tokenreduce.evaluation.asking import Protocol
from tokenreduce.evaluation.bars import Bars
from tokenreduce.evaluation.budget import schedule_at
from tokenreduce.evaluation.comparing import Level
from tokenreduce.evaluation.conditions import (
    BASELINES,
    FULL,
    Condition,
    draws_beside,
    plan,
    spelled_out,
)
from tokenreduce.evaluation.examples import accuracy, examples, picked, telling
from tokenreduce.evaluation.identity import folder_of, identity
from tokenreduce.evaluation.options import check
from tokenreduce.evaluation.pareto import draw
from tokenreduce.evaluation.question_sets import candidates
from tokenreduce.evaluation.records import Store
from tokenreduce.evaluation.runner import Runner
from tokenreduce.evaluation.scoring import first_tokens, is_right
from tokenreduce.evaluation.shard import Shard
from tokenreduce.evaluation.statistics import needed, planned_power
from tokenreduce.evaluation.table import (
    collect,
    earlier_notes,
    joined,
    row_of,
    show,
    summary,
    write,
)
from tokenreduce.files import locked
from tokenreduce.inference.loaded import Loaded, load
from tokenreduce.program import result
from tokenreduce.program.pages import write_report
from tokenreduce.program.rules import rule_of
from tokenreduce.program.sweep import in_sweep
from tokenreduce.viz.quantities import counted

ENOUGH = 0.8
"""Power of the test below which a run warns."""


def evaluate(config: DictConfig, output: Path) -> dict[str, Any]:
    """Asks, compares, draws; returns the rows of the table.

    output: folder of this run; answers go to the folder that the runs of a sweep share.
    """
    check(plain(config.task), config.max_new_tokens)
    limit = config.task.limit
    items = build_reader(config).items(limit, int(config.task.draw))[:limit]
    level = Level(config.task.margin, config.task.alpha)
    _tell_power(len(items), level, config.task.changing)
    is_right(items[0], "", config.task.match)  # an unknown rule is refused now
    shard = Shard.begin(str(config.device))
    loaded = load(model_spec(config))
    tested = chosen(config, loaded, items)
    conditions = plan(
        tested, list(config.task.baselines), config.task.seeds, list(config.task.changes)
    )
    root = root_of(config, output)
    runner = _runner(config, loaded, items, Store(folder_of(root, loaded)), shard)
    runner.bars.of = len(conditions)
    runner.bars.resumed(conditions, runner.store.answers, runner.store.folder)
    for condition in conditions:
        runner.run(condition, needed=condition in (tested, FULL))
    about = [draws_beside(tested, conditions), _nothing(runner, tested)]
    inside = tested.recipe is not None and not tested.recipe.strategy.acts_on_pixels
    if inside and "downsample" in config.task.baselines:
        reason = runner.run_smaller(tested)
        about.append(f"downsample: {reason}" if reason else None)
    notes = [note for note in about if note]
    notes += [f"{key.rpartition('-')[0]}: {why}" for key, why in runner.impossible.items()]
    numbers: dict[str, Any] = {"folder": str(root)}
    if shard.first:
        numbers |= {
            "model": loaded.source,
            "device": str(loaded.device),
            "tested": None if tested == FULL else tested.key,
            **_table(config, runner, tested, root, notes, output),
        }
    shard.wait()
    return numbers


def chosen(config: DictConfig, loaded: Loaded, items: Sequence[Item]) -> Condition:
    """The condition that a configuration names, at `task.flops` where that is given."""
    scheduler = None
    if config.task.flops is not None:
        on_pixels = build_strategy(config).acts_on_pixels
        rule, options = ("single", {"layer": 0}) if on_pixels else rule_of(config)
        scheduler = schedule_at(loaded, items, float(config.task.flops), rule, options)
    recipe = replace(build_recipe(config, scheduler), logits="full")  # a matter of training
    return spelled_out(recipe, loaded)


def root_of(config: DictConfig, output: Path) -> Path:
    """The folder that all runs of a comparison share: of the whole sweep, where there is one."""
    if config.task.folder is not None:
        return Path(str(config.task.folder)).expanduser()
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).absolute()
    return output


def _table(
    config: DictConfig,
    runner: Runner,
    tested: Condition,
    root: Path,
    notes: list[str],
    output: Path,
) -> dict[str, Any]:
    """Compares, writes, draws and prints; in a sweep one line, as its end prints the table."""
    level = Level(config.task.margin, config.task.alpha)
    with locked(root, "table"):  # what is written last has the rows of all
        rows, about = collect(root, level)
        said = {**earlier_notes(root), tested.key: notes, "": about}
        files = [*write(root, rows, level, said), *draw(root, rows)]
    full, own = (row_of(rows, runner.store.folder.name, one) for one in (FULL, tested))
    if tested != FULL and config.task.looks:
        files.append(_report(config, runner, tested, (full, own), output))
    if in_sweep():
        print(summary(own))
    else:
        console = Console()
        console.print(show(rows, level, joined(said), console.width))
    return {"table": rows, "notes": joined(said), "files": [str(file) for file in files]}


def _runner(
    config: DictConfig, loaded: Loaded, items: Sequence[Item], store: Store, shard: Shard
) -> Runner:
    """What asks, with the folder made for this model and these questions."""
    starts = {
        kind: first_tokens(loaded.processor.tokenizer, answers)
        for kind, answers in candidates(items).items()
    }
    about = {
        "versions": result.versions(),
        "machine": result.machine(),
        "device": str(loaded.device),
        "commit": result.commit(),
        "baselines": list(BASELINES),
    }
    how = Protocol(config.task.batch, config.max_new_tokens, config.task.match, starts)
    same = identity(loaded, items, how, str(config.data.name), str(config.attention))
    store.begin(same, about)
    task = config.task
    return Runner(
        loaded,
        items,
        how,
        store,
        shard,
        timed=task.timed,
        runs=task.runs,
        followed=task.followed,
        bars=Bars(False if not shard.first else task.progress),
    )


def _nothing(runner: Runner, tested: Condition) -> str | None:
    """Warns, and says for the notes, where a reduction was asked for and no question had one."""
    if tested == FULL or all(keep >= 1 for _, keep in runner.shares(tested)):
        return None
    rows = runner.store.answers(tested.key).values()
    if any(row["flops"] < row["flops_full"] for row in rows):
        return None
    least = 0 if tested.recipe is None else tested.recipe.min_tokens
    why = f"min_tokens={least} is above" if least else "the schedule keeps"
    note = f"{tested.label}: nothing was reduced, {why} the visual tokens of every question"
    if runner.shard.first:
        warnings.warn(note, stacklevel=3)
    return note


def _report(
    config: DictConfig, runner: Runner, tested: Condition, rows: tuple[Any, Any], output: Path
) -> Path:
    """`report.html`: some of the questions, with what the tested reduction kept.

    rows: the full model's and the tested reduction's, of the table.
    """
    full, ours = (runner.store.answers(condition.key) for condition in (FULL, tested))
    items = telling(runner.items, full, ours, config.task.looks)
    assert tested.recipe is not None  # of the full model there is nothing to look at
    limit, match = config.max_new_tokens, config.task.match
    looks = examples(runner.loaded, tested.recipe, items, limit, match)
    about = [*map(accuracy, rows), picked(runner.items, items, full, ours)]
    return write_report(output, looks, config, runner.loaded, tested.label, about)


def _tell_power(number: int, level: Level, changing: float) -> None:
    """Says beforehand where the questions are too few to show what is asked for."""
    power = planned_power(number, level.margin, changing, level.alpha)
    if power < ENOUGH:
        enough = needed(level.margin, changing, level.alpha, ENOUGH)
        warnings.warn(
            f"{counted(number, 'question')} can hardly show that less than {100 * level.margin:g} "
            f"points are lost: the power is {power:.2f} if {changing:.0%} of the answers change, "
            f"and {enough} questions would have {ENOUGH:g} (more where several are about one "
            "picture); read 'inconclusive' in the table as that, not as a loss",
            stacklevel=2,
        )
