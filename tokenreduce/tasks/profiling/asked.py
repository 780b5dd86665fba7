"""Which questions `config.data` names for a profile."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tokenreduce.data.conversations import Conversations, shapes_conversations
from tokenreduce.data.encoding import Encoder
from tokenreduce.data.rows import Conversation
from tokenreduce.errors import BadOption
from tokenreduce.evaluation.items import Item
from tokenreduce.profiling import Prompt, alone, prompts_of
from tokenreduce.tasks.evaluating.sources import SOURCES
from tokenreduce.tasks.training.sources import conversations


def asked(config: DictConfig, processor: Any) -> list[Prompt]:
    """The prompts of a profile: `task.samples` questions.

    Of rendered scenes every question is asked alone; of other data `seed` draws rows, and the first
    question of each is asked. What `data.holdout` sets aside is left for tests.

    Raises:
        ValueError: as the readers of data, or nothing to ask.
    """
    data = config.data
    encoder = Encoder(processor, data.get("max_length"), data.get("prompt", "chat"))
    limit = int(config.task.samples)
    if limit < 1:
        raise BadOption(f"task.samples={limit} must be at least 1")
    return prompts_of(_questions(config, limit), encoder, limit, data.get("bad", "error"))


def _questions(config: DictConfig, limit: int) -> Iterator[Conversation]:
    data = config.data
    if data.name == "shapes":
        scenes = shapes_conversations(
            config.seed, data.split, limit, data.questions, data.difficulty
        )
        return islice((one for scene in scenes for one in alone(scene)), limit)
    rows: Sequence[Conversation] | Conversations
    if data.name == "questions":
        rows = [_conversation(item) for item in SOURCES["questions"](config)]
    else:
        rows = conversations(config).train
    order = random.Random(int(config.seed)).sample(range(len(rows)), len(rows))
    return (rows[i] for i in order)


def _conversation(item: Item) -> Conversation:
    """A question and its right answer as a turn each."""
    asked = [{"type": "image"}, {"type": "text", "text": item.question}]
    said = [{"type": "text", "text": item.answer}]
    picture = item.pixels if isinstance(item.pixels, Path) else item.picture()
    return Conversation(
        item.name,
        (picture,),
        ({"role": "user", "content": asked}, {"role": "assistant", "content": said}),
    )
