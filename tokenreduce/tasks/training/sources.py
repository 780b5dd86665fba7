"""Which conversations `config.data` names: to train on, and to measure on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from tokenreduce.data.conversations import (
    Conversations,
    hold_out,
    read_folder,
    read_llava,
    shapes_conversations,
)
from tokenreduce.errors import BadOption, did_you_mean


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
    if name not in SOURCES:
        raise BadOption(
            f"no data {name!r} to train on{did_you_mean(name, SOURCES)} "
            f"(known: {', '.join(SOURCES)})"
        )
    return SOURCES[name](config.data, int(config.seed))


def _shapes(data: DictConfig, seed: int) -> Data:
    def drawn(split: str, size: int) -> Conversations:
        return shapes_conversations(seed, split, size, data.questions, data.difficulty)

    held = drawn("heldout", data.measured) if data.measured else None
    return Data(drawn("train", data.size), held)


def _llava(data: DictConfig, seed: int) -> Data:
    rows = read_llava(_path(data), data.images, bad=data.bad)
    return _parted(rows, data.holdout, seed)


def _folder(data: DictConfig, seed: int) -> Data:
    rows = read_folder(_path(data), data.split, bad=data.bad)
    return _parted(rows, data.holdout, seed)


def _parted(rows: Conversations, share: float, seed: int) -> Data:
    train, measured = hold_out(rows, share, seed) if share else (rows, None)
    return Data(train, measured, rows.skipped)


def _path(data: DictConfig) -> str:
    if data.path is None:
        raise BadOption(f"data={data.name} needs a path: add data.path=...")
    return str(data.path)


SOURCES: dict[str, Callable[[Any, int], Data]] = {
    "shapes": _shapes,
    "llava": _llava,
    "folder": _folder,
}
