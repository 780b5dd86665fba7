"""The schedule of a strategy at a share of FLOPs, so that strategies compare at one budget."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import tokenreduce as tr
from tokenreduce.cost import shape_of
from tokenreduce.data.items import Item
from tokenreduce.evaluation.asking import inputs_of
from tokenreduce.evaluation.conditions import FULL
from tokenreduce.inference.loaded import Loaded
from tokenreduce.inference.measure import prefill

PROMPTS = 8
DIGITS = 4


def schedule_at(
    loaded: Loaded, items: Sequence[Item], flops: float, rule: str, options: Mapping[str, Any]
) -> tr.Scheduler:
    """The schedule of a rule that costs `flops` of the full model's prefill.

    What it keeps is solved for, at the mean length of some of the prompts.

    Raises:
        ValueError: a rule without a share to solve for, or a budget that it cannot meet.
    """
    visual, text = lengths(loaded, items)
    made: Any = tr.solve(
        shape_of(tr.unwrap(loaded.model).config),
        visual=visual,
        text=text,
        flops=flops,
        rule=rule,
        **options,
    )
    shares = {key: _short(value) for key, value in tr.schedulers.node(made).items()}
    rounded: tr.Scheduler = tr.schedulers.parse(shares)
    return rounded


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
            text.append(report.text_tokens[0])
    return round(statistics.fmean(visual)), round(statistics.fmean(text))


def _short(value: Any) -> Any:
    """A share rounded down, which is what the folder and the table have to say."""
    if isinstance(value, float):
        return int(value * 10**DIGITS) / 10**DIGITS
    return tuple(map(_short, value)) if isinstance(value, list | tuple) else value
