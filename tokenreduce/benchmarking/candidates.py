"""What is measured: strategies under each of the schedules that keep a given share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenreduce as tr
from tokenreduce.benchmarking.rounds import Candidate
from tokenreduce.cost import DecoderShape
from tokenreduce.errors import BadOption
from tokenreduce.solving.search import FREE, solve
from tokenreduce.strategy import Positions


def candidates(
    strategies: Mapping[str, tr.Strategy],
    schedules: Sequence[tuple[float | None, tr.Scheduler]],
    positions: Positions | None = None,
    seed: int = 0,
) -> list[Candidate]:
    """Every strategy under every schedule, by schedule.

    Args:
        strategies: by the names that tables show; all others are compared with the first.
        schedules: kept shares, where they were asked for, and what keeps them.
        positions: the position rule; None is each strategy's own.
        seed: of strategies that draw.

    Raises:
        ValueError: the first strategy has nothing to do in a model.
    """
    name, own = next(iter(strategies.items()))
    if not own.reduces:
        raise BadOption(
            f"strategy={name} leaves the model's own work as it is, so that there "
            "is nothing to measure: choose another"
        )
    return [
        Candidate(name, tr.Recipe(strategy, scheduler, positions, seed=seed), share)
        for share, scheduler in schedules
        for name, strategy in strategies.items()
    ]


def schedules_at(
    keeps: Sequence[Any], scheduler: Mapping[str, Any], shape: DecoderShape, visual: int
) -> list[tuple[float | None, tr.Scheduler]]:
    """Kept shares with the schedules of a rule that keep them.

    A share is that of the visual tokens which a layer has, averaged over the layers, so that rules
    of different form can be compared.

    Args:
        keeps: shares above 0 and below 1.
        scheduler: name and options of the rule; what it keeps is solved for.
        shape: of the decoder.
        visual: tokens of a prompt.

    Raises:
        ValueError: a rule that no share can be found for, or shares that it does not reach.
    """
    options: dict[str, Any] = dict(scheduler)
    rule = options.pop("name")
    if rule not in FREE:
        raise BadOption(
            f"task.keeps needs a rule whose share can be found, which {rule!r} is not: choose "
            f"scheduler={'|'.join(FREE)}, or task.keeps=null for the schedule as it is"
        )
    options.pop(FREE[rule])
    found: list[tuple[float | None, tr.Scheduler]] = []
    for share in keeps:
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise BadOption(f"task.keeps: a share lies between 0 and 1, not {share!r}")
        made = solve(shape, visual=visual, average=float(share) * visual, rule=rule, **options)
        found.append((float(share), made))
    return found
