"""Who is measured: the chosen strategy and those beside it, under each of the schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

import tokenreduce as tr
from tokenreduce.config import build_scheduler, build_strategy, known, plain
from tokenreduce.cost import DecoderShape
from tokenreduce.errors import BadOption
from tokenreduce.solve import FREE, solve
from tokenreduce.tasks.benchmarking.rounds import Candidate


def candidates(config: DictConfig, shape: DecoderShape, visual: int) -> list[Candidate]:
    """Every strategy under every schedule, the chosen strategy first.

    Raises:
        ValueError: a strategy that has nothing to do in a model, a rule that no share can be found
            for, or shares that it does not reach.
        KeyError: an unknown strategy in `task.baselines`.
    """
    own, options = build_strategy(config), {"positions": config.positions, "seed": config.seed}
    if own.site == "pictures" or not own.reduces:
        raise BadOption(
            f"strategy={config.strategy.name} leaves the model's own work as it is, so that there "
            "is nothing to measure: choose another"
        )
    strategies = {str(config.strategy.name): own}
    for name in config.task.baselines or ():
        strategies.setdefault(str(name), known("strategy").build(str(name)))
    return [
        Candidate(name, strategy, scheduler, share=share, **options)
        for share, scheduler in schedules(config, shape, visual)
        for name, strategy in strategies.items()
    ]


def schedules(
    config: DictConfig, shape: DecoderShape, visual: int
) -> list[tuple[float | None, tr.Scheduler]]:
    """Kept shares with their schedules; the chosen schedule alone where no shares are asked for.

    A share is that of the visual tokens which a layer has, averaged over the layers, so that rules
    of different form can be compared.
    """
    if config.task.keeps is None:
        return [(None, build_scheduler(config))]
    options: dict[str, Any] = dict(plain(config.scheduler))
    rule = options.pop("name")
    if rule not in FREE:
        raise BadOption(
            f"task.keeps needs a rule whose share can be found, which {rule!r} is not: choose "
            f"scheduler={'|'.join(FREE)}, or task.keeps=null for the schedule as it is"
        )
    options.pop(FREE[rule])
    found: list[tuple[float | None, tr.Scheduler]] = []
    for share in config.task.keeps:
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise BadOption(f"task.keeps: a share lies between 0 and 1, not {share!r}")
        made = solve(shape, visual=visual, average=float(share) * visual, rule=rule, **options)
        found.append((float(share), made))
    return found


def whole_numbers(values: Any, option: str) -> list[int]:
    """A list of positive whole numbers as the command line gives it.

    Raises:
        ValueError: anything else.
    """
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    whole = [n for n in listed if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if not listed or len(whole) < len(listed):
        raise BadOption(f"{option} must be a list of whole numbers such as [1,4], not {values!r}")
    return whole
