"""Questions that a model is measured on: its inputs up to the answer, and the answer's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import is_
from pathlib import Path

from PIL import Image
from torch import Tensor

from tokenreduce.data.batching import IGNORED
from tokenreduce.data.rows import Conversation, Message, Unusable
from tokenreduce.errors import BadOption


@dataclass(frozen=True)
class Prompt:
    """One question about pictures.

    Attributes:
        inputs: of the model, without a dimension for the batch and without labels.
        given: tokens of the right answer, what ends it included; none where it is not known.
        picture: number of the picture: several questions may be about one.
        name: of the row that it comes from.
    """

    inputs: Mapping[str, Tensor]
    given: tuple[int, ...]
    picture: int
    name: str


def prompts_of(
    conversations: Iterable[Conversation],
    encode: Callable[[Conversation], Mapping[str, Tensor]],
    limit: int | None = None,
    bad: str = "error",
) -> list[Prompt]:
    """The first question of every conversation that has a picture, up to `limit` of them.

    Conversations about the same files count as about one picture, and so do conversations in a row
    about the same opened pictures.

    Args:
        conversations: what is asked.
        encode: a `tokenreduce.data.encoding.Encoder`.
        limit: the most prompts; None takes all.
        bad: `"error"` stops at a row that cannot be encoded, `"skip"` leaves it out.

    Raises:
        ValueError: a row that cannot be encoded, or no question about a picture at all.
    """
    found: list[Prompt] = []
    pictures = _Pictures()
    for conversation in conversations:
        if limit is not None and len(found) >= limit:
            break
        if not conversation.images:
            continue
        try:
            row = encode(first(conversation))
        except Unusable as error:
            if bad == "skip":
                continue
            raise BadOption(
                f"{conversation.name}: {error}; mend the row, or leave such rows out with bad=skip"
            ) from error
        found.append(_prompt(row, pictures.number(conversation.images), conversation.name))
    if not found:
        raise BadOption("no conversation about a picture: there is nothing to measure on")
    return found


class _Pictures:
    """Numbers pictures in the order in which they are first seen."""

    def __init__(self) -> None:
        self._files: dict[tuple[Path, ...], int] = {}
        self._last: tuple[Image.Image | Path, ...] = ()
        self._count = 0

    def number(self, images: tuple[Image.Image | Path, ...]) -> int:
        files = tuple(image for image in images if isinstance(image, Path))
        if len(files) == len(images):
            self._count += files not in self._files
            return self._files.setdefault(files, self._count - 1)
        # opened pictures have no name: the same object, or another picture
        same = len(images) == len(self._last) and all(map(is_, images, self._last))
        self._count += not same
        self._last = images
        return self._count - 1


def first(conversation: Conversation) -> Conversation:
    """A conversation up to its first answer, with the pictures of that part alone."""
    messages: list[Message] = []
    for message in conversation.messages:
        messages.append(message)
        if message["role"] == "assistant":
            break
    return _part(conversation, messages)


def _part(conversation: Conversation, messages: list[Message]) -> Conversation:
    number = sum(part["type"] == "image" for m in messages for part in m["content"])
    return replace(conversation, images=conversation.images[:number], messages=tuple(messages))


def _prompt(row: Mapping[str, Tensor], picture: int, name: str) -> Prompt:
    """The row up to the first token of its answer, and the answer."""
    ids, labels = row["input_ids"], row["labels"].tolist()
    start = next(i for i, label in enumerate(labels) if label != IGNORED)
    stop = next((i for i in range(start, len(labels)) if labels[i] == IGNORED), len(labels))
    inputs = {
        key: value[:start] if value.shape == ids.shape else value
        for key, value in row.items()
        if key != "labels"
    }
    return Prompt(inputs, tuple(labels[start:stop]), picture, name)
