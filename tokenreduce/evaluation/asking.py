"""Questions of the rendered task, each asked alone through the processor and `generate()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tokenreduce.evaluation.items import HELDOUT, Item, heldout, items_of

__all__ = ["HELDOUT", "Item", "answers", "heldout", "items_of", "right"]


@torch.no_grad()
def answers(
    model: Any, processor: Any, items: Sequence[Item], batch: int = 32, **options: Any
) -> list[str]:
    """The greedy answer to every item, in their order.

    Args:
        model: a vision-language model, reduced or not.
        processor: with a chat template.
        items: what is asked.
        batch: prompts at once, of similar length.
        **options: for `generate`.
    """
    found = [""] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(items[i].question.split()))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        inputs = processor.apply_chat_template(
            [_chat(items[i]) for i in chunk],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(model.device)
        said = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(said, skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            found[i] = text.strip()
    return found


def right(items: Sequence[Item], said: Sequence[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) whether every answer is the right one, word for word."""
    return np.array([a == item.answer for item, a in zip(items, said, strict=True)], dtype=bool)


def _chat(item: Item) -> list[dict[str, Any]]:
    content = [
        {"type": "image", "image": item.picture()},
        {"type": "text", "text": item.question},
    ]
    return [{"role": "user", "content": content}]
