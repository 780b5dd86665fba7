"""Conversations as the text that a model reads, with the places of the answers in it.

Nothing is searched for: the template is rendered up to every answer, as it would be to ask for it,
and up to its end; both must be beginnings of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tokenreduce.data.rows import Conversation, Message, Unusable
from tokenreduce.errors import BadOption

PROMPTS = ("chat", "plain")

# LLaVA's form, for processors that bring no template of their own
LLAVA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% endif %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ IMAGE }}{% endfor %}"
    "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text')"
    " | join(' ') }}"
    "{% if message['role'] == 'assistant' %}{{ END }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Answer:
    """Where an answer lies: characters of the text, and how many images come before it."""

    begin: int
    end: int
    images: int


@dataclass(frozen=True)
class Transcript:
    """The text of a conversation with one placeholder per image, and its answers in order."""

    text: str
    answers: tuple[Answer, ...]


class Writer:
    """Writes conversations for one processor.

    Attributes:
        mark: what stands for an image in the text.
        end_of_turn: what is written after an answer, without white space; empty where the
            template writes nothing, so that nothing teaches a model to stop.
    """

    def __init__(self, processor: Any, prompt: str) -> None:
        self.processor = processor
        self.prompt = prompt
        token = image_token(processor)
        self._template = None
        if not getattr(processor, "chat_template", None):
            end = processor.tokenizer.eos_token or ""
            self._template = LLAVA.replace("IMAGE", json.dumps(f"{token}\n")).replace(
                "END", json.dumps(end)
            )
        self.mark = self._mark() or token
        self.end_of_turn = self._closing().strip()

    def __call__(self, conversation: Conversation) -> Transcript:
        """The conversation in the template's form, or an image and its caption alone.

        Raises:
            Unusable: the template refuses it or writes the past anew when it goes on; in the plain
                form also no image, or several answers.
        """
        messages = list(conversation.messages)
        return self._plain(messages) if self.prompt == "plain" else self._chat(messages)

    def _chat(self, messages: list[Message]) -> Transcript:
        text = self._render(messages)
        answers: list[Answer] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:i], ask=True)
            after = self._render(messages[: i + 1])
            if not (text.startswith(before) and text.startswith(after)):
                raise Unusable(
                    "the chat template is not stable",
                    f"answer {len(answers) + 1} does not follow on what asks for it",
                )
            answers.append(Answer(len(before), len(after), images_in(messages[:i])))
        return Transcript(text, tuple(answers))

    def _plain(self, messages: list[Message]) -> Transcript:
        """LLaVA's first stage of training: `<image>caption`, and a line's end (conv `plain`)."""
        captions = [m["content"][0]["text"] for m in messages if m["role"] == "assistant"]
        if len(captions) != 1:
            raise Unusable("not one caption", f"prompt=plain has one answer, not {len(captions)}")
        images = images_in(messages)
        if not images:
            raise Unusable("no image", "prompt=plain teaches captions of images")
        marks = self.mark * images
        text = f"{marks}{captions[0]}\n"
        return Transcript(text, (Answer(len(marks), len(text), images),))

    def _render(self, messages: Sequence[Message], ask: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.processor.apply_chat_template(
                    list(messages),
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=ask,
                )
            )
        except TemplateError as error:
            raise Unusable("refused by the chat template", str(error)) from None

    def _mark(self) -> str:
        """The text that one more image adds to a question, without white space around it."""
        image, word = {"type": "image"}, {"type": "text", "text": "word"}
        try:
            one, two = (
                self._render([{"role": "user", "content": [image] * n + [word]}]) for n in (1, 2)
            )
        except Unusable:  # a template of one image
            return ""
        shared = _shared(one, two)
        return two[shared : shared + len(two) - len(one)].strip()

    def _closing(self) -> str:
        if self.prompt == "plain":
            return ""
        ask = {"role": "user", "content": [{"type": "text", "text": "word"}]}
        yes, no = (
            self._render([ask, {"role": "assistant", "content": [{"type": "text", "text": said}]}])
            for said in ("yes", "no")
        )
        return yes[len(yes) - _shared(yes[::-1], no[::-1]) :]


def images_in(messages: Sequence[Message]) -> int:
    """How many images messages have."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def begins(tokenizer: Any, text: str) -> bool:
    """Whether a prompt begins with `<s>` already, which the tokenizer is then not to add."""
    start = getattr(tokenizer, "bos_token", None)
    return bool(start) and text.startswith(str(start))


def image_token(processor: Any) -> str:
    """The text that stands for an image in a prompt, as the processor knows it.

    Up to transformers 5.14 Gemma 3 calls by this name what it writes, and reads its `boi_token`.

    Raises:
        ValueError: it knows none.
    """
    for owner in (processor, processor.tokenizer):
        token, begins_image = (getattr(owner, name, None) for name in ("image_token", "boi_token"))
        if token is not None:
            doubt = begins_image not in (None, token)
            return str(begins_image if doubt and not _reads(processor, token) else token)
    raise BadOption(f"{type(processor).__name__} names no image_token: it reads no images")


def _reads(processor: Any, token: str) -> bool:
    """Whether a processor takes `token` in a text for an image."""
    try:
        processor(text=[token], images=[[Image.new("RGB", (64, 64))]], return_tensors="pt")
    except ValueError:
        return False
    return True


def _shared(one: str, two: str) -> int:
    """How many characters two texts begin with in common."""
    ends = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return next(ends, min(len(one), len(two)))
