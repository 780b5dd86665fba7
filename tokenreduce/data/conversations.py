"""Conversations to train on, from LLaVA's files, from saved datasets, and from rendered scenes.

    rows = read_llava("llava_v1_5_mix665k.json", images="images", bad="skip")
    rows[0].messages, rows.summary()

Every row is checked when a file is read; of what was read only the places of the rows are kept,
so that hundreds of thousands fit. Texts and images are read again when a row is asked for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tokenreduce.checks import one_of
from tokenreduce.data.jsonrows import JsonRows, index_rows
from tokenreduce.data.rows import Conversation, Message, Unusable
from tokenreduce.data.savedrows import SavedRows, open_saved
from tokenreduce.data.stream import SPLITS, Sample, sample
from tokenreduce.errors import BadOption
from tokenreduce.files import named

__all__ = [
    "BAD",
    "Conversation",
    "Conversations",
    "Message",
    "Unusable",
    "check_bad",
    "hold_out",
    "of_sample",
    "read_folder",
    "read_llava",
    "shapes_conversations",
]

BAD = ("error", "skip")
"""What to do about rows that cannot be trained on."""
WAY_OUT = "mend the row, or leave such rows out with bad=skip"


class Conversations:
    """A number of conversations, each read when it is asked for.

    Attributes:
        skipped: name and reason of every row that was left out.
    """

    def __init__(
        self,
        size: int,
        read: Callable[[int], Conversation],
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._size = size
        self._read = read
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Conversation:
        """The conversation at `index`; negative ones count from the end.

        Raises:
            IndexError: there are fewer.
            Unusable: the row has changed since it was checked.
        """
        place = index + self._size if index < 0 else index
        if not 0 <= place < self._size:
            raise IndexError(f"conversation {index} of {self._size}")
        return self._read(place)

    def __iter__(self) -> Iterator[Conversation]:
        return (self._read(index) for index in range(self._size))

    def summary(self) -> dict[str, int]:
        """How many rows were left out for each reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.skipped).most_common())

    def select(self, indices: Sequence[int]) -> Conversations:
        """The conversations at `indices`, in that order; what was skipped stays with the whole."""
        return Conversations(len(indices), _Selected(self, indices))


def read_llava(
    path: str | Path, images: str | Path | None = None, *, bad: str = "error"
) -> Conversations:
    """The conversations of a file in LLaVA's format: one JSON object per line, or one JSON list.

    Rows may have `messages` of roles and contents in place of `conversations`, and several
    `images`. `<image>` in a question becomes an image entry where it lies.

    Args:
        path: of the file.
        images: the folder that the names of images start from; the file's own where not given.
            Names that lead out of it are refused.
        bad: `"error"` stops at the first row that cannot be used, `"skip"` leaves such rows out.

    Raises:
        ValueError: no such file or folder, a list that is not JSON, no usable row; under
            `bad="error"` also a row that cannot be used, with file, line and reason.
    """
    check_bad(bad)
    file = named(path, "data.path")
    if not file.is_file():
        raise BadOption(f"no file {str(path)!r}: give the path of a JSON or JSONL file")
    folder = file.parent if images is None else named(images, "data.images")
    if not folder.is_dir():
        raise BadOption(f"no folder {str(images)!r}: images are looked for in the folder images=")
    rows = JsonRows(file, folder)
    return _checked(rows, index_rows(file, rows), str(file), bad)


def read_folder(path: str | Path, split: str | None = None, *, bad: str = "error") -> Conversations:
    """The conversations of a folder that `datasets.Dataset.save_to_disk` has written.

    Its columns are `images` or `image` (pictures, or paths inside of the folder; may be absent),
    `conversations` or `messages` as in `read_llava`, and perhaps `id`.

    Args:
        path: of the folder.
        split: of a `DatasetDict`.
        bad: as in `read_llava`.

    Raises:
        ValueError: no such folder, a split or column that is not there, `datasets` is not
            installed, no usable row; under `bad="error"` also a row that cannot be used.
    """
    check_bad(bad)
    rows = open_saved(named(path, "data.path"), split)
    return _checked(rows, rows.check(), str(path), bad)


def shapes_conversations(
    seed: int = 0,
    split: str = "train",
    size: int = 10_000,
    questions: int = 1,
    difficulty: float = 1.0,
) -> Conversations:
    """Rendered scenes, each with several questions and their answers: the same for the same seed.

    Args:
        seed: of everything that is drawn.
        split: `"train"` or `"heldout"`; they never share a scene.
        size: how many conversations; each is drawn when it is asked for.
        questions: asked about one scene, a turn each.
        difficulty: 0: two to four items, 1: five to ten.

    Raises:
        ValueError: an unknown split, fewer than one conversation or question.
    """
    one_of(split, SPLITS, "split")
    if size < 1 or questions < 1:
        raise BadOption(f"size={size} and questions={questions} must be at least 1")
    return Conversations(size, _Drawn(seed, split, questions, difficulty))


def of_sample(drawn: Sample, name: str) -> Conversation:
    """A rendered scene as a conversation: each of its questions is a turn, with its answer."""
    messages: list[Message] = []
    for question in drawn.questions:
        asked = [{"type": "text", "text": question.text}]
        answer = [{"type": "text", "text": question.answer}]
        messages += [
            {"role": "user", "content": asked if messages else [{"type": "image"}, *asked]},
            {"role": "assistant", "content": answer},
        ]
    return Conversation(name, (Image.fromarray(drawn.image),), tuple(messages))


def hold_out(
    conversations: Conversations, share: float, seed: int = 0
) -> tuple[Conversations, Conversations]:
    """Two parts without a common row: to train on, and a random `share` to measure on.

    Both keep the order of the whole. A share above 0 holds out one row at least.

    Raises:
        ValueError: a share outside of [0, 1), or nothing left to train on.
    """
    if not 0 <= share < 1:
        raise BadOption(f"holdout={share} must be a share from 0 up to, not including, 1")
    size = len(conversations)
    number = max(1, round(size * share)) if share else 0
    if number >= size:
        raise BadOption(f"holdout={share} of {size} rows leaves none to train on")
    held = sorted(random.Random(seed).sample(range(size), number))
    apart = set(held)
    rest = [index for index in range(size) if index not in apart]
    return conversations.select(rest), conversations.select(held)


def check_bad(bad: str) -> None:
    """Refuse an unknown word for what to do about unusable rows.

    Raises:
        ValueError: not one of `BAD`.
    """
    one_of(bad, BAD, "rule for bad rows")


def _checked(
    rows: JsonRows | SavedRows,
    found: Iterator[tuple[str, str, Unusable | None]],
    source: str,
    bad: str,
) -> Conversations:
    """Goes through all rows once: name, place in words, and what is wrong with each."""
    skipped = []
    good: list[int] = []
    index = -1
    for index, (name, place, fault) in enumerate(found):
        if fault is None:
            good.append(index)
        elif bad == "error":
            raise BadOption(f"{place}: {fault}; {WAY_OUT}")
        else:
            skipped.append((name, fault.reason))
    if not good:
        every = Conversations(0, rows, skipped).summary()
        why = "; ".join(f"{reason}: {count}" for reason, count in every.items())
        raise BadOption(f"{source} has no usable row among {index + 1}" + (why and f" ({why})"))
    rows.keep(good)
    return Conversations(len(good), rows, skipped)


@dataclass(frozen=True)
class _Selected:
    whole: Conversations
    indices: Sequence[int]

    def __call__(self, index: int) -> Conversation:
        return self.whole[self.indices[index]]


@dataclass(frozen=True)
class _Drawn:
    seed: int
    split: str
    questions: int
    difficulty: float

    def __call__(self, index: int) -> Conversation:
        drawn = sample(
            self.seed, self.split, index, questions=self.questions, difficulty=self.difficulty
        )
        return of_sample(drawn, f"shapes:{self.split}:{index}")
