"""Refuses options of `task=evaluate` that mean nothing, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.evaluation.conditions import BASELINES
from tokenreduce.evaluation.perturbation import perturbations
from tokenreduce.files import named

COUNTS = {
    "batch": (1, "questions at once"),
    "draw": (0, "which of the rendered scenes are asked about"),
    "seeds": (1, "draws of random"),
    "timed": (0, "prompts whose prefill is timed"),
    "runs": (1, "times that each is timed"),
    "followed": (0, "questions whose kept tokens are compared under another one"),
    "looks": (0, "questions in report.html"),
}
"""Whole numbers: the least of each, and what it counts."""
SHARES = {
    "margin": "the loss of answers that is tested against",
    "alpha": "the level of that test",
    "changing": "the share of answers that are expected to change",
}
"""Numbers above 0 and below 1."""
BUDGET = "the share of the full model's prefill FLOPs that a reduction may take"


def check(task: Mapping[str, Any], max_new_tokens: Any) -> None:
    """Refuses what the options of the task cannot be.

    Args:
        task: every option of an evaluation by its name.
        max_new_tokens: of an answer.

    Raises:
        ValueError, KeyError: in one line, the option with its value, and what it is.
    """
    for name, (least, meaning) in COUNTS.items():
        _count(f"task.{name}", task[name], least, meaning)
    if task["limit"] is not None:
        _count("task.limit", task["limit"], 1, "questions, or null for all")
    _count("max_new_tokens", max_new_tokens, 1, "tokens of an answer")
    budget = {} if task["flops"] is None else {"flops": BUDGET}
    for name, meaning in {**SHARES, **budget}.items():
        value = task[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < 1:
            raise BadOption(f"task.{name}={value!r}: {meaning}, above 0 and below 1")
    for name in _names("task.baselines", task["baselines"], BASELINES):
        if name not in BASELINES:
            raise BadOption(
                f"task.baselines: {name!r} reads the model or is unknown"
                f"{did_you_mean(name, BASELINES)} (known: {', '.join(BASELINES)})"
            )
    for name in _names("task.changes", task["changes"], list(perturbations)):
        perturbations[name]  # an unknown one is refused
    if task["progress"] not in (None, True, False):
        raise BadOption(f"task.progress={task['progress']!r}: true, false, or null where it fits")
    _folder(task["folder"])


def _count(option: str, value: Any, least: int, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadOption(f"{option}={value!r}: a whole number of {least} or more, {meaning}")


def _names(option: str, value: Any, known: Sequence[str]) -> list[str]:
    if not isinstance(value, list | tuple):
        raise BadOption(
            f"{option}={value!r} is no list: give some of [{', '.join(known)}], or [] for none"
        )
    return [str(name) for name in value]


def _folder(value: Any) -> None:
    if value is None:
        return
    folder = named(str(value), "task.folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadOption(f"task.folder={value}: {there} is a file: give a folder for the answers")
