"""Which conversations and which questions `config.data` names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from omegaconf import DictConfig

from tokenreduce.data.conversations import (
    Conversations,
    hold_out,
    read_folder,
    read_llava,
    shapes_conversations,
)
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.evaluation.items import Item, first_questions, heldout, read_questions

T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """Conversations to train on, and to measure on where some are set aside.

    `skipped` has the name and the reason of every row that was left out.
    """

    train: Conversations
    measured: Conversations | None
    skipped: Sequence[tuple[str, str]] = ()


def conversations(config: DictConfig) -> Data:
    """The data that `config.data` names.

    Raises:
        ValueError: an unknown kind of data, a path that is missing, rows that cannot be used.
    """
    name = str(config.data.name)
    return _source(TRAINED_ON, name, "train on")(config.data, int(config.seed))


def questions(config: DictConfig) -> list[Item]:
    """The questions to ask, at most `task.limit` of them.

    Raises:
        ValueError: an unknown kind of data, a path that is missing, rows that cannot be used.
    """
    asked = _source(ASKED, str(config.data.name), "evaluate on")
    return asked(config.data, config.task)[: config.task.limit]


def file_questions(data: DictConfig) -> list[Item]:
    """All questions of the file that `data=questions` names.

    Raises:
        ValueError: no path, or rows that cannot be used.
    """
    return read_questions(_path(data), data.images)


def _source(known: Mapping[str, T], name: str, purpose: str) -> T:
    """What reads the data of that name, where it can be used for a purpose."""
    if name not in known:
        raise BadOption(
            f"no data {name!r} to {purpose}{did_you_mean(name, known)} (known: {', '.join(known)})"
        )
    return known[name]


def _train_shapes(data: DictConfig, seed: int) -> Data:
    def drawn(split: str, size: int) -> Conversations:
        return shapes_conversations(seed, split, size, data.questions, data.difficulty)

    held = drawn("heldout", data.measured) if data.measured else None
    return Data(drawn("train", data.size), held)


def _train_llava(data: DictConfig, seed: int) -> Data:
    rows = read_llava(_path(data), data.images, bad=data.bad)
    return _parted(rows, data.holdout, seed)


def _train_folder(data: DictConfig, seed: int) -> Data:
    rows = read_folder(_path(data), data.split, bad=data.bad)
    return _parted(rows, data.holdout, seed)


def _parted(rows: Conversations, share: float, seed: int) -> Data:
    train, measured = hold_out(rows, share, seed) if share else (rows, None)
    return Data(train, measured, rows.skipped)


def _ask_shapes(data: DictConfig, task: DictConfig) -> list[Item]:
    if task.limit is None:
        raise BadOption("the rendered questions do not end: give task.limit=...")
    if data.questions < 1:
        raise BadOption(f"data.questions={data.questions}: 1 or more about each scene")
    images = math.ceil(task.limit / data.questions)
    return heldout(task.draw, images, data.questions, difficulty=data.difficulty)


def _ask_file(data: DictConfig, task: DictConfig) -> list[Item]:
    return file_questions(data)


def _ask_llava(data: DictConfig, task: DictConfig) -> list[Item]:
    return first_questions(read_llava(_path(data), data.images, bad=data.bad), task.limit)


def _ask_folder(data: DictConfig, task: DictConfig) -> list[Item]:
    return first_questions(read_folder(_path(data), data.split, bad=data.bad), task.limit)


def _path(data: DictConfig) -> str:
    if data.path is None:
        raise BadOption(f"data={data.name} needs a path: add data.path=...")
    return str(data.path)


TRAINED_ON: dict[str, Callable[[Any, int], Data]] = {
    "shapes": _train_shapes,
    "llava": _train_llava,
    "folder": _train_folder,
}
ASKED: dict[str, Callable[[Any, Any], list[Item]]] = {
    "shapes": _ask_shapes,
    "questions": _ask_file,
    "llava": _ask_llava,
    "folder": _ask_folder,
}
