"""Kinds of data that `data=` chooses from: to train on, to ask about, and to profile with.

A kind is a dataclass of its options, registered by name, as a strategy is; a file
`conf/data/NAME.yaml` shows the options on the command line. A plug-in adds one in the same way:

    @readers.register("captions")
    @dataclass(frozen=True)
    class Captions(Reader):
        path: str | None = None

        def conversations(self, seed: int) -> Data: ...
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from tokenreduce.data.conversations import (
    Conversations,
    hold_out,
    read_folder,
    read_llava,
    shapes_conversations,
)
from tokenreduce.data.items import Item, conversation, first_questions, heldout, read_questions
from tokenreduce.data.rows import Conversation, alone
from tokenreduce.errors import BadOption
from tokenreduce.registry import Registry


@dataclass(frozen=True)
class Data:
    """Conversations to train on, and to measure on where some are set aside.

    `skipped` has the name and the reason of every row that was left out.
    """

    train: Conversations
    measured: Conversations | None
    skipped: Sequence[tuple[str, str]] = ()


class Reader:
    """A kind of data, made with its options.

    Subclasses are dataclasses and read `conversations`, `items`, or both; what one does not read
    is refused, with the kinds that can be used. `prompt`, `bad` and `max_length` say how rows are
    encoded (`tokenreduce.data.encoding.Encoder`): fields of those kinds that leave the choice.

    Attributes:
        needs: packages that it cannot do without, each with what `pip install` brings it by.
    """

    needs: ClassVar[Mapping[str, str]] = {}
    prompt: str = "chat"
    bad: str = "error"
    max_length: int | None = None

    def conversations(self, seed: int) -> Data:
        """What to train on, and what to measure the loss on.

        seed: of what is drawn.

        Raises:
            ValueError: it cannot be trained on, or an option or a row cannot be used.
        """
        raise BadOption(self._refused("conversations", "to train on"))

    def items(self, limit: int | None, seed: int) -> list[Item]:
        """Questions with their right answers; the caller takes the first `limit` of them.

        limit: how many are wanted; None: all that there are.
        seed: of what is drawn.

        Raises:
            ValueError: it cannot be evaluated on, or an option or a row cannot be used.
        """
        raise BadOption(self._refused("items", "to evaluate on"))

    def prompts(self, limit: int, seed: int) -> Iterator[Conversation]:
        """Conversations of which a profile asks the first question, in an order drawn by `seed`.

        Of what is trained on, so that what is set aside is left for tests; else of `items`. There
        may be more than `limit`: some may turn out to be unusable.

        Raises:
            ValueError: as `conversations` and `items`.
        """
        rows: Sequence[Conversation] | Conversations
        if type(self).conversations is Reader.conversations:
            rows = [conversation(item) for item in self.items(None, seed)]
        else:
            rows = self.conversations(seed).train
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        return (rows[i] for i in order)

    def _refused(self, what: str, purpose: str) -> str:
        """That this kind cannot be used for a purpose, and which can."""
        able = [
            name
            for name, kind in readers.items()
            if getattr(kind, what) is not getattr(Reader, what)
        ]
        return f"no data {readers.name_of(self)!r} {purpose} (known: {', '.join(able)})"


readers: Registry[type[Reader]] = Registry("data")


@readers.register("shapes")
@dataclass(frozen=True)
class Shapes(Reader):
    """Rendered scenes with nine types of question, from a seed and without end.

    Attributes:
        split: that a profile draws from.
        questions: about each scene.
        difficulty: 0: two to four items, 1: five to ten.
        size: conversations to train on.
        measured: held-out conversations to measure the loss on; 0: none.
    """

    split: str = "heldout"
    questions: int = 8
    difficulty: float = 1.0
    size: int = 100_000
    measured: int = 32

    def conversations(self, seed: int) -> Data:
        """Scenes of the training split, and held-out ones with them."""
        held = self._drawn(seed, "heldout", self.measured) if self.measured else None
        return Data(self._drawn(seed, "train", self.size), held)

    def items(self, limit: int | None, seed: int) -> list[Item]:
        """Questions about held-out scenes; a limit must be given."""
        if limit is None:
            raise BadOption("the rendered questions do not end: give task.limit=...")
        if self.questions < 1:
            raise BadOption(f"data.questions={self.questions}: 1 or more about each scene")
        images = math.ceil(limit / self.questions)
        return heldout(seed, images, self.questions, difficulty=self.difficulty)

    def prompts(self, limit: int, seed: int) -> Iterator[Conversation]:
        """Every question by itself, for no question leans on another."""
        scenes = self._drawn(seed, self.split, limit)
        return islice((one for scene in scenes for one in alone(scene)), limit)

    def _drawn(self, seed: int, split: str, size: int) -> Conversations:
        return shapes_conversations(seed, split, size, self.questions, self.difficulty)


class Rows(Reader):
    """Conversations that lie somewhere: how they are parted, and what is asked of them.

    A subclass says which they are, and has the option `holdout`.
    """

    holdout: float

    def rows(self) -> Conversations:
        """All of them, in their order."""
        raise NotImplementedError

    def conversations(self, seed: int) -> Data:
        """The rows, in two parts where some are set aside."""
        rows = self.rows()
        train, measured = hold_out(rows, self.holdout, seed) if self.holdout else (rows, None)
        return Data(train, measured, rows.skipped)

    def items(self, limit: int | None, seed: int) -> list[Item]:
        """The first question of each conversation about one picture."""
        return first_questions(self.rows(), limit)


@readers.register("llava")
@dataclass(frozen=True)
class Llava(Rows):
    """Conversations from a file in LLaVA's format, as `read_llava` reads it.

    Attributes:
        path: of the file.
        images: the folder that names of pictures start from; None: the file's own.
        prompt: `"chat"` or `"plain"`.
        bad: `"error"` or `"skip"`: what to do about rows that cannot be trained on.
        max_length: tokens of a row; None: as many as there are.
        holdout: share of the rows that is measured on and not trained on.
    """

    path: str | None = None
    images: str | None = None
    prompt: str = "chat"
    bad: str = "error"
    max_length: int | None = None
    holdout: float = 0.0

    def rows(self) -> Conversations:
        """Of the file."""
        return read_llava(_given(self.path, "llava"), self.images, bad=self.bad)


@readers.register("folder")
@dataclass(frozen=True)
class Folder(Rows):
    """Conversations from a folder of a saved dataset, as `read_folder` reads it.

    Attributes:
        path: of the folder.
        split: of a `DatasetDict`.
        prompt: as in `Llava`, and so are `bad`, `max_length` and `holdout`.
    """

    path: str | None = None
    split: str | None = None
    prompt: str = "chat"
    bad: str = "error"
    max_length: int | None = None
    holdout: float = 0.0

    needs: ClassVar[Mapping[str, str]] = {"datasets": "tokenreduce[train]"}

    def rows(self) -> Conversations:
        """Of the folder."""
        return read_folder(_given(self.path, "folder"), self.split, bad=self.bad)


@readers.register("questions")
@dataclass(frozen=True)
class Questions(Reader):
    """Questions from a file with one JSON object per line, as `read_questions` reads it.

    Attributes:
        path: of the file.
        images: the folder that names of pictures start from; None: the file's own.
    """

    path: str | None = None
    images: str | None = None

    def items(self, limit: int | None, seed: int) -> list[Item]:
        """All questions of the file."""
        return read_questions(_given(self.path, "questions"), self.images)


def _given(path: str | None, name: str) -> str:
    if path is None:
        raise BadOption(f"data={name} needs a path: add data.path=...")
    return path
