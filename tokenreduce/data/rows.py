r"""One row of training data: a conversation about pictures, checked before it is used.

Two formats are read, LLaVA's and the one of chat messages:

    {"id": "7", "image": "cat.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}
    {"images": ["cat.jpg"], "messages": [
        {"role": "user", "content": "<image>\nWhat is this?"},
        {"role": "assistant", "content": "A cat."}]}
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from tokenreduce.data.images import load_image, to_rgb
from tokenreduce.errors import BadOption

MARKER = "<image>"
"""Stands for a picture in the text of a row, whatever a model's own placeholder is."""
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
Part = dict[str, str]
Message = dict[str, Any]


class Unusable(BadOption):
    """A row that cannot be trained on.

    Attributes:
        reason: the kind of fault in a few words, the same for all rows that have it.
        detail: what is wrong with this one; empty where the reason says it all.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes hand errors on by pickling them
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Conversation:
    """Questions about pictures and their answers.

    Attributes:
        name: the row's own id, or `file:line`.
        images: pictures, or paths that are opened when they are needed, in reading order.
        messages: chat messages, `{"role": ..., "content": [...]}`, where an entry of a content is
            `{"type": "image"}` or `{"type": "text", "text": ...}`.
    """

    name: str
    images: tuple[Image.Image | Path, ...]
    messages: tuple[Message, ...]

    def pictures(self) -> list[Image.Image]:
        """The images, opened, in RGB.

        Raises:
            Unusable: a file that is not there, damaged, too large or of an unknown format.
        """
        try:
            return [
                to_rgb(image) if isinstance(image, Image.Image) else load_image(image)
                for image in self.images
            ]
        except ValueError as error:
            raise Unusable("an image cannot be opened", str(error)) from None


def alone(conversation: Conversation) -> Iterator[Conversation]:
    """Every question of a conversation by itself, about the pictures of the first.

    For data whose questions do not lean on the ones before, such as rendered scenes.
    """
    shown = [part for part in conversation.messages[0]["content"] if part["type"] == "image"]
    for number, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        asked = conversation.messages[number - 1]
        words = [part for part in asked["content"] if part["type"] == "text"]
        yield replace(
            conversation, messages=({"role": asked["role"], "content": [*shown, *words]}, message)
        )


def read_row(row: Any, name: str, images: Sequence[Image.Image | Path]) -> Conversation:
    """The conversation that a row holds, about `images`.

    Raises:
        Unusable: anything about the row that would teach a model something wrong.
    """
    messages = read_messages(row)
    markers = sum(part["type"] == "image" for m in messages for part in m["content"])
    if markers < len(images):
        raise Unusable("more images than markers", f"{len(images)} images, {markers} {MARKER}")
    if markers > len(images):
        raise Unusable("more markers than images", f"{markers} {MARKER}, {len(images)} images")
    return Conversation(name, tuple(images), messages)


def read_messages(row: Any) -> tuple[Message, ...]:
    """The messages of a row in the chat format, from either form; answers have one text each.

    Raises:
        Unusable: fields are missing, roles are unknown or out of order, an answer is missing or
            holds an image.
    """
    if not isinstance(row, Mapping):
        raise Unusable("not an object", f"a row is {{...}}, not {type(row).__name__}")
    if row.get("video") or row.get("videos"):
        raise Unusable("a video", "only images can be trained on")
    if row.get("conversations") is not None:
        turns = _turns(row, "conversations", "from", "value")
    elif row.get("messages") is not None:
        turns = _turns(row, "messages", "role", "content")
    else:
        raise Unusable("missing field", "neither 'conversations' nor 'messages'")
    messages = tuple(_message(role, content) for role, content in turns)
    if any("<video>" in part.get("text", "") for m in messages for part in m["content"]):
        raise Unusable("a video", "a <video> marker, and only images can be trained on")
    _check_order([message["role"] for message in messages])
    return messages


def image_names(row: Any) -> list[Any]:
    """What a row names as its images, under `image` or `images`, one or several."""
    if not isinstance(row, Mapping):
        return []
    found = row.get("images") if row.get("images") is not None else row.get("image")
    if found is None:
        return []
    return list(found) if isinstance(found, list | tuple) else [found]


def image_path(name: Any, folder: Path, exists: Callable[[str], bool] = os.path.isfile) -> Path:
    """The file that `name` leads to from `folder`.

    Names are followed as they are written: a link inside the folder may lead anywhere, since the
    folder's owner has put it there; a name that climbs out of it may not.

    Raises:
        Unusable: not a relative path inside of the folder, or no file there.
    """
    if not isinstance(name, str) or not name:
        raise Unusable("not a path of an image", repr(name))
    inside = os.path.normpath(name)
    if os.path.isabs(name) or "://" in name or inside.split(os.sep)[0] == os.pardir:
        raise Unusable("image outside the folder", f"{name!r} does not lie in {str(folder)!r}")
    path = os.path.join(folder, inside)  # pathlib takes several times as long
    if not exists(path):
        raise Unusable("missing image file", f"{name!r} is not in {str(folder)!r}")
    return Path(path)


def _turns(row: Mapping[str, Any], field: str, who: str, what: str) -> list[tuple[Any, Any]]:
    turns = row[field]
    if not isinstance(turns, list | tuple):
        raise Unusable("missing field", f"{field!r} is no list")
    for turn in turns:
        for key in (who, what):
            if not isinstance(turn, Mapping) or turn.get(key) is None:
                raise Unusable("missing field", f"a turn of {field!r} has no {key!r}")
    return [(turn[who], turn[what]) for turn in turns]


def _message(role: Any, content: Any) -> Message:
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise Unusable("unknown role", f"{role!r} (known: {', '.join(ROLES)})")
    parts = _split(content) if isinstance(content, str) else _listed(content)
    if known != "user" and any(part["type"] == "image" for part in parts):
        where = "an answer" if known == "assistant" else "a system message"
        raise Unusable("image marker in an answer", f"only questions have images, not {where}")
    if not parts:
        raise Unusable("no answer" if known == "assistant" else "empty question", "a turn is empty")
    if known == "assistant":  # one text: several templates write the first one only
        parts = [{"type": "text", "text": "\n".join(part["text"] for part in parts)}]
    return {"role": known, "content": parts}


def _split(text: str) -> list[Part]:
    """Texts and images in reading order; templates bring their own white space around images."""
    parts: list[Part] = []
    for i, piece in enumerate(text.split(MARKER)):
        if i:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _listed(content: Any) -> list[Part]:
    if not isinstance(content, list | tuple):
        raise Unusable("missing field", f"a content is text or a list, not {content!r}")
    parts: list[Part] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            if part["text"].strip():
                parts.append({"type": "text", "text": part["text"].strip()})
        else:
            raise Unusable("unknown part of a content", f"{part!r} is neither text nor image")
    return parts


def _check_order(roles: list[str]) -> None:
    if "assistant" not in roles:
        raise Unusable("no answer", "no turn of the assistant")
    turns = roles[1:] if roles[0] == "system" else roles
    for i, role in enumerate(turns):
        if role != ("user", "assistant")[i % 2]:
            raise Unusable("turns out of order", " ".join(roles))
    if len(turns) % 2:
        raise Unusable("no answer", "the last question has none")
