"""Which questions `config.data` names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from tokenreduce.data.conversations import read_folder, read_llava
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.evaluation.items import Item, first_questions, heldout, read_questions


def questions(config: DictConfig) -> list[Item]:
    """The questions to ask, at most `task.limit` of them.

    Raises:
        ValueError: an unknown kind of data, a path that is missing, rows that cannot be used.
    """
    name, limit = str(config.data.name), config.task.limit
    if name not in SOURCES:
        raise BadOption(
            f"no data {name!r} to evaluate on{did_you_mean(name, SOURCES)} "
            f"(known: {', '.join(SOURCES)})"
        )
    found = SOURCES[name](config)
    return found[:limit]


def _shapes(config: DictConfig) -> list[Item]:
    if config.task.limit is None:
        raise BadOption("the rendered questions do not end: give task.limit=...")
    if config.data.questions < 1:
        raise BadOption(f"data.questions={config.data.questions}: 1 or more about each scene")
    images = math.ceil(config.task.limit / config.data.questions)
    return heldout(
        config.task.draw, images, config.data.questions, difficulty=config.data.difficulty
    )


def _questions(config: DictConfig) -> list[Item]:
    return read_questions(_path(config), config.data.images)


def _llava(config: DictConfig) -> list[Item]:
    rows = read_llava(_path(config), config.data.images, bad=config.data.bad)
    return first_questions(rows, config.task.limit)


def _folder(config: DictConfig) -> list[Item]:
    rows = read_folder(_path(config), config.data.split, bad=config.data.bad)
    return first_questions(rows, config.task.limit)


def _path(config: DictConfig) -> str:
    if config.data.path is None:
        raise BadOption(f"data={config.data.name} needs a path: add data.path=...")
    return str(config.data.path)


SOURCES: dict[str, Callable[[Any], list[Item]]] = {
    "shapes": _shapes,
    "questions": _questions,
    "llava": _llava,
    "folder": _folder,
}
