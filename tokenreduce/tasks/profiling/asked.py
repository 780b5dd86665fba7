"""Which questions `config.data` names for a profile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from omegaconf import DictConfig

from tokenreduce.data.conversations import shapes_conversations
from tokenreduce.data.encoding import Encoder
from tokenreduce.data.rows import Conversation
from tokenreduce.profiling import Prompt, alone, prompts_of
from tokenreduce.tasks.training.sources import conversations


def asked(config: DictConfig, processor: Any) -> list[Prompt]:
    """The prompts of a profile: `task.samples` questions.

    Of rendered scenes every question is asked alone; of other data the first of conversations that
    are drawn by `seed`. What `data.holdout` sets aside is left for tests.

    Raises:
        ValueError: as the readers of data, or nothing to ask.
    """
    data = config.data
    encoder = Encoder(processor, data.get("max_length"), data.get("prompt", "chat"))
    limit = int(config.task.samples)
    if limit < 1:
        raise ValueError(f"task.samples={limit} must be at least 1")
    return prompts_of(_questions(config, limit), encoder, limit, data.get("bad", "error"))


def _questions(config: DictConfig, limit: int) -> Iterator[Conversation]:
    data = config.data
    if data.name == "shapes":
        scenes = shapes_conversations(
            config.seed, data.split, limit, data.questions, data.difficulty
        )
        return islice((one for scene in scenes for one in alone(scene)), limit)
    rows = conversations(config).train
    order = random.Random(int(config.seed)).sample(range(len(rows)), len(rows))
    return (rows[i] for i in order)
