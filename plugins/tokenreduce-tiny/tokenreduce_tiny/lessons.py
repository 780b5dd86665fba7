"""What the model is taught on: rendered scenes of any level, and three lessons next to nine types.

`colour_of` and `shape_of` need two things that no other type needs: to find a thing by its glyph,
and to tell its colour or shape. Each lesson needs one of the two. No test asks them.

    tokenreduce task=evaluate data=lessons task.limit=240
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from tokenreduce.data.conversations import Conversation, Conversations, of_sample
from tokenreduce.data.glyphs import GLYPHS
from tokenreduce.data.items import HELDOUT, Item, items_of
from tokenreduce.data.questions import (
    ASKERS,
    COLUMNS,
    ROWS,
    Ask,
    Question,
    ask,
    lettered,
    pick,
    place,
)
from tokenreduce.data.readers import Data, Reader, readers
from tokenreduce.data.shapes import Scene, compose, render
from tokenreduce.data.stream import Sample, generator
from tokenreduce.errors import BadOption


def glyph_where(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The row and the column of the one item that carries that glyph."""
    item = pick(rng, lettered(scene))
    if item is None:
        return None
    answer = f"{ROWS[item.cell[0]]} {COLUMNS[item.cell[1]]}"
    return Question("glyph_where", f"where is the object {item.glyph}?", answer)


def colour_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the item in a cell."""
    item = scene.items[int(rng.integers(len(scene.items)))]
    return Question("colour_at", f"what colour is in {place(item.cell)}?", item.colour)


def shape_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The shape of the item in a cell."""
    item = scene.items[int(rng.integers(len(scene.items)))]
    return Question("shape_at", f"what shape is in {place(item.cell)}?", item.shape)


LESSONS = tuple(one.__name__ for one in (glyph_where, colour_at, shape_at))
ASKED: dict[str, Ask] = {**ASKERS, **{name: globals()[name] for name in LESSONS}}
"""The nine types, then the lessons."""


@dataclass(frozen=True)
class Level:
    """How hard scenes are, and what is asked about them.

    Attributes:
        questions: about each scene.
        difficulty: 0: two to four items, 1: five to ten.
        glyphs: different ones in all scenes together.
        weights: relative frequencies by type or lesson; None: the nine types equally often.
    """

    questions: int = 0
    difficulty: float = 1.0
    glyphs: int = len(GLYPHS)
    weights: Mapping[str, float] | None = None


def draw(seed: int, split: str, index: int, level: Level) -> Sample:
    """Sample `index` of a split at a level; at the defaults it is `tokenreduce.data.sample`'s."""
    rng = generator(seed, split, index)
    scene = compose(rng, level.difficulty, level.glyphs)
    image, owners = render(scene, rng)
    if not level.questions:
        return Sample(scene, image, owners, ())
    askers = ASKERS if level.weights is None else ASKED
    asked = ask(scene, rng, level.questions, level.weights, askers)
    return Sample(scene, image, owners, asked)


@readers.register("lessons")
@dataclass(frozen=True)
class Lessons(Reader):
    """Rendered scenes, about which the lessons are asked as often as each of the nine types.

    Attributes:
        questions: about each scene.
        difficulty: 0: two to four items, 1: five to ten.
        glyphs: different ones in all scenes together.
        size: conversations to train on.
        measured: held-out conversations to measure the loss on; 0: none.
    """

    questions: int = 8
    difficulty: float = 1.0
    glyphs: int = len(GLYPHS)
    size: int = 100_000
    measured: int = 32

    def conversations(self, seed: int) -> Data:
        """Scenes of the training split, and held-out ones with them."""
        held = self._rows(seed, "heldout", self.measured) if self.measured else None
        return Data(self._rows(seed, "train", self.size), held)

    def items(self, limit: int | None, seed: int) -> list[Item]:
        """Questions about held-out scenes that no training has seen; a limit must be given."""
        if limit is None:
            raise BadOption("the lessons do not end: give task.limit=...")
        scenes = range(HELDOUT, HELDOUT + math.ceil(limit / self._level().questions))
        return items_of(draw(seed, "heldout", index, self._level()) for index in scenes)

    def _rows(self, seed: int, split: str, size: int) -> Conversations:
        return Conversations(size, partial(_conversation, seed, split, self._level()))

    def _level(self) -> Level:
        if self.questions < 1:
            raise BadOption(f"data.questions={self.questions}: 1 or more about each scene")
        return Level(self.questions, self.difficulty, self.glyphs, dict.fromkeys(ASKED, 1.0))


def _conversation(seed: int, split: str, level: Level, index: int) -> Conversation:
    return of_sample(draw(seed, split, index, level), f"lessons:{split}:{index}")
