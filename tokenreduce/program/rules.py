"""The rule of a schedule that a configuration names, and whether the command line names one."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from tokenreduce.config import build_strategy, plain
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.program import result
from tokenreduce.solving.search import FREE


def rule_of(config: DictConfig) -> tuple[str, dict[str, Any]]:
    """The rule that `config.scheduler` names, and its options but the one that is looked for.

    Raises:
        ValueError: a rule whose share cannot be found, or a strategy that knows no schedule.
    """
    strategy = build_strategy(config)
    if not strategy.reduces:
        raise BadOption(
            f"strategy={config.strategy.name} reduces nothing inside the model, so that there is "
            "nothing to solve: choose another"
        )
    options = dict(plain(config.scheduler))
    rule = str(options.pop("name"))
    if rule not in FREE:
        raise BadOption(
            f"scheduler={rule} has no share to solve for{did_you_mean(rule, FREE)} "
            f"(known: {', '.join(FREE)})"
        )
    options.pop(FREE[rule])
    return rule, {name: value for name, value in options.items() if value is not None}


def chosen() -> bool:
    """Whether the command line says how to schedule."""
    words = [word.lstrip("+~").partition("=")[0] for word in result.given()]
    return any(word.partition(".")[0] in ("scheduler", "experiment") for word in words)
