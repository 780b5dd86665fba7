r"""What a model is asked: questions about pictures with their right answers.

Of the rendered task, of training conversations, or of a file with one JSON object per line:

    {"id": "7", "image": "cat.jpg", "question": "What is this?", "answer": "a cat",
     "group": "animals", "options": ["a cat", "a dog"], "paraphrase": "Which animal is this?"}

`image`, `question` and `answer` (one, or a list of right ones) must be there. Several questions
may be about one picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenreduce.data.conversations import Conversations
from tokenreduce.data.images import check_image, load_image, to_rgb
from tokenreduce.data.questions import paraphrased
from tokenreduce.data.rows import Conversation, Unusable, image_path
from tokenreduce.data.stream import Sample, sample
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.files import named, parse_json

HELDOUT = 1_000_000
"""Held-out samples below were looked at while models were trained, these were not."""
NEEDED = ("image", "question", "answer")
FIELDS = ("id", *NEEDED, "group", "options", "paraphrase")


Pixels = np.ndarray[Any, np.dtype[np.uint8]] | Path | Image.Image | Callable[[], Image.Image]


@dataclass(frozen=True)
class Item:
    """A question about a picture, of a kind, with its right answer.

    Attributes:
        image: names the picture; several questions may be about one.
        pixels: the picture: (h, w, 3), where it lies on this disk, or what makes it when it is
            asked about, so that many changed pictures need no memory.
        kind: of the question; accuracy is told by kind.
        question: what is asked.
        answer: the right answer.
        name: of the question.
        accepted: other right answers.
        options: what there is to choose from, where the data says so.
        paraphrase: the same question in other words.
    """

    image: int | str
    pixels: Pixels
    kind: str
    question: str
    answer: str
    name: str = ""
    accepted: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    paraphrase: str | None = None

    def picture(self) -> Image.Image:
        """The picture in RGB.

        Raises:
            ValueError: a file that is not there, damaged, too large or of an unknown format;
                32-bit numbers whose white is not known.
        """
        if isinstance(self.pixels, Path):
            return load_image(self.pixels)
        if isinstance(self.pixels, Image.Image):
            return to_rgb(self.pixels)
        if isinstance(self.pixels, np.ndarray):
            return to_rgb(Image.fromarray(self.pixels))
        return self.pixels()

    @property
    def right_answers(self) -> tuple[str, ...]:
        """Every answer that counts."""
        return (self.answer, *self.accepted)


def items_of(samples: Iterable[Sample]) -> list[Item]:
    """Every question of every sample; pictures are numbered from 0."""
    return [
        Item(
            number,
            one.image,
            question.type,
            question.text,
            question.answer,
            name=f"{number}-{place}",
            paraphrase=paraphrased(question.text),
        )
        for number, one in enumerate(samples)
        for place, question in enumerate(one.questions)
    ]


def heldout(
    seed: int, images: int, questions: int, first: int = HELDOUT, difficulty: float = 1.0
) -> list[Item]:
    """Questions about pictures that no training has seen, at full difficulty unless told."""
    return items_of(
        sample(seed, "heldout", first + number, questions=questions, difficulty=difficulty)
        for number in range(images)
    )


def read_questions(path: str | Path, images: str | Path | None = None) -> list[Item]:
    """The questions of a file with one JSON object per line; pictures are opened later.

    Args:
        path: of the file.
        images: the folder that the names of pictures start from; the file's own where not given.
            Names that lead out of it are refused.

    Raises:
        ValueError: no such file or folder, a line that is not UTF-8 or no JSON object, fields that
            are missing or of the wrong kind, a picture outside of the folder, not there, or with
            nothing of a picture at its beginning, two questions of one id, no question at all; with
            file and line.
    """
    file = named(path, "data.path")
    if not file.is_file():
        raise BadOption(f"no file {str(path)!r}: give the path of a JSON-lines file of questions")
    folder = file.parent if images is None else named(images, "data.images")
    if not folder.is_dir():
        raise BadOption(f"no folder {str(images)!r}: pictures are looked for in the images= folder")
    found: dict[str, Item] = {}
    seen: set[Path] = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                item = _read_item(_parsed(line), f"{number}", folder)
                if isinstance(item.pixels, Path) and item.pixels not in seen:
                    check_image(item.pixels)
                    seen.add(item.pixels)
            except ValueError as error:
                raise BadOption(f"{file}:{number}: {error}") from None
            if item.name in found:
                raise BadOption(f"{file}:{number}: a second question with the id {item.name!r}")
            found[item.name] = item
    if not found:
        raise BadOption(f"{file} holds no question")
    return list(found.values())


def first_questions(rows: Conversations, limit: int | None = None) -> list[Item]:
    """The first question of each conversation about one picture, with its answer.

    What came before a later question would have to be the model's own words, so those are left
    out; conversations without a picture, or with several, are too.
    """
    found: list[Item] = []
    for row in rows:
        if limit is not None and len(found) >= limit:
            break
        turns = [m for m in row.messages if m["role"] != "system"]
        if len(row.images) != 1 or len(turns) < 2:
            continue
        asked = " ".join(part["text"] for part in turns[0]["content"] if part["type"] == "text")
        answer = str(turns[1]["content"][0]["text"])
        source = row.images[0]
        key = str(source) if isinstance(source, Path) else row.name
        found.append(Item(key, source, "question", asked, answer, name=row.name))
    if not found:
        raise BadOption(
            "the data has no conversation that begins with a question about one picture"
        )
    return found


def conversation(item: Item) -> Conversation:
    """A question and its right answer as a turn each."""
    asked = [{"type": "image"}, {"type": "text", "text": item.question}]
    said = [{"type": "text", "text": item.answer}]
    picture = item.pixels if isinstance(item.pixels, Path) else item.picture()
    return Conversation(
        item.name,
        (picture,),
        ({"role": "user", "content": asked}, {"role": "assistant", "content": said}),
    )


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unusable("not UTF-8", f"{error.reason} at byte {error.start + 1}") from None
    except ValueError as error:
        raise Unusable(f"not JSON ({error})") from None


def _read_item(row: Any, name: str, folder: Path) -> Item:
    if not isinstance(row, Mapping):
        raise Unusable("not an object", f"a line is {{...}}, not {type(row).__name__}")
    if lacking := [field for field in NEEDED if row.get(field) in (None, "", [])]:
        raise Unusable(
            f"no {', '.join(map(repr, lacking))}{_mistyped(row, lacking)}",
            f"the fields here are {', '.join(map(repr, row))}; known: {', '.join(FIELDS)}",
        )
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    options = row.get("options") or []
    for field, value in (
        ("question", row["question"]),
        *(("answer", answer) for answer in answers),
        *(("options", option) for option in (options if isinstance(options, list) else [None])),
        ("paraphrase", row.get("paraphrase") or "-"),
    ):
        if not isinstance(value, str) or not value.strip():
            raise Unusable(f"{field!r} is no text", repr(value))
    path = image_path(row["image"], folder)
    return Item(
        image=os.path.normpath(row["image"]),  # one picture, however its name is written
        pixels=path,
        kind=_named(row.get("group"), "question"),
        question=row["question"],
        answer=answers[0],
        name=_named(row.get("id"), name),
        accepted=tuple(answers[1:]),
        options=tuple(options),
        paraphrase=row.get("paraphrase") or None,
    )


def _mistyped(row: Mapping[Any, Any], lacking: Sequence[str]) -> str:
    """For fields that are not read, which of those that are missing were meant."""
    found = ""
    for key in map(str, row):
        if key not in FIELDS and (hint := did_you_mean(key, lacking)):
            found += f"; it has {key!r}{hint.replace(';', ',')}"
    return found


def _named(value: Any, otherwise: str) -> str:
    """A name as a row gives it; 0 is one."""
    return otherwise if value is None or value == "" else str(value)
