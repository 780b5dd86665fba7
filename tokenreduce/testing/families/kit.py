"""What a tiny checkpoint needs besides its model, for a user to load it from a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN: Mapping[int, str] = {0: "<pad>", 1: "<s>", 2: "</s>", 9: "<unk>"}
"""Special tokens of every tiny model, by id; the words begin at 10."""


@dataclass(frozen=True)
class Kit:
    """The processor of one family.

    Attributes:
        family: the recipe of the model, a name of `models.FAMILIES`.
        tokens: the family's special tokens by id, besides `PLAIN`.
        marks: what the chat template writes for a part of a message, by the part's type.
        processor: made from a tokenizer and a chat template: the family's own class.
        names: further attributes of the tokenizer, such as `image_token`.
    """

    family: str
    tokens: Mapping[int, str]
    marks: Mapping[str, str]
    processor: Callable[[Any, str], Any]
    names: Mapping[str, str] = field(default_factory=dict)
