"""Greedy answers, of one prompt or of many questions, through `generate()`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from tokenreduce.inference.inputs import encode_all
from tokenreduce.inference.loaded import Loaded


class Asked(Protocol):
    """A question about one picture, such as an `Item` of `tokenreduce.data.items`."""

    @property
    def question(self) -> str:
        """The words."""

    def picture(self) -> Image.Image:
        """What it is about."""


def answer(loaded: Loaded, inputs: Mapping[str, Any], limit: int) -> Tensor:
    """(n,) the tokens of the greedy answer, with the one that ends it, at most `limit`."""
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
    new: Tensor = ids[0, inputs["input_ids"].shape[1] :]
    return new


@torch.no_grad()
def answers(
    model: Any, processor: Any, items: Sequence[Asked], batch: int = 32, **options: Any
) -> list[str]:
    """The greedy answer to every item, in their order.

    Args:
        model: a vision-language model, reduced or not.
        processor: with a chat template.
        items: what is asked.
        batch: prompts at once, of similar length.
        **options: for `generate`.
    """
    loaded, found = Loaded(model, processor, "", embedded=False), [""] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].question.split()))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        pictures = [[items[i].picture()] for i in chunk]
        inputs = encode_all(loaded, [items[i].question for i in chunk], pictures)
        said = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        for i, ids in zip(chunk, said, strict=True):
            found[i] = loaded.text(ids)
    return found
