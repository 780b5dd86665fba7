"""The schedule of a strategy at a share of FLOPs, so that strategies compare at one budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

import tokenreduce as tr
from tokenreduce.config import build_strategy
from tokenreduce.cost import shape_of
from tokenreduce.evaluation.items import Item
from tokenreduce.tasks.evaluating.asking import inputs_of
from tokenreduce.tasks.evaluating.conditions import FULL
from tokenreduce.tasks.loading import Loaded
from tokenreduce.tasks.measuring import prefill
from tokenreduce.tasks.solve import rule_of
from tokenreduce.tasks.solving.preset import options_of

PROMPTS = 8
DIGITS = 4


def schedule_at(
    config: DictConfig, loaded: Loaded, items: Sequence[Item]
) -> Mapping[str, Any] | None:
    """Name and options of the schedule that costs `task.flops`; None where no budget is given.

    The rule is that of `config.scheduler`; what it keeps is solved for, at the mean length of some
    of the prompts.

    Raises:
        ValueError: a rule without a share to solve for, or a budget that it cannot meet.
    """
    if config.task.flops is None:
        return None
    options: dict[str, Any]
    if build_strategy(config).site == "pictures":
        rule, options = "single", {"layer": 0}
    else:
        rule, options = rule_of(config)
    visual, text = lengths(loaded, items)
    made: Any = tr.solve(
        shape_of(tr.unwrap(loaded.model).config),
        visual=visual,
        text=text,
        flops=float(config.task.flops),
        rule=rule,
        **options,
    )
    return {key: _short(value) for key, value in options_of(made).items()}


def lengths(loaded: Loaded, items: Sequence[Item]) -> tuple[int, int]:
    """Visual and other tokens of a prompt, the means over some of the questions."""
    step = max(1, len(items) // PROMPTS)
    visual, text = [], []
    with tr.reduce(loaded.model, "none") as reduction:
        for item in items[::step][:PROMPTS]:
            inputs, _ = inputs_of(loaded, FULL, [item])
            prefill(loaded.model, inputs)
            report = reduction.report
            visual.append(report.visual_tokens[0])
            text.append(report.tokens_per_layer[0][0] - report.visual_tokens[0])
    return round(statistics.fmean(visual)), round(statistics.fmean(text))


def _short(value: Any) -> Any:
    """A share rounded down, which is what the folder and the table have to say."""
    if isinstance(value, float):
        return int(value * 10**DIGITS) / 10**DIGITS
    return tuple(map(_short, value)) if isinstance(value, list | tuple) else value
