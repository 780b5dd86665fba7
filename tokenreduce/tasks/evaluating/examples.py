"""Some of the questions to look at: first those whose answers the reduction has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import tokenreduce as tr
from tokenreduce.evaluation.answering import is_right
from tokenreduce.evaluation.items import Item
from tokenreduce.evaluation.records import Row
from tokenreduce.tasks.evaluating.conditions import Condition
from tokenreduce.tasks.generate import only_share
from tokenreduce.tasks.loading import Loaded
from tokenreduce.tasks.looking import look
from tokenreduce.viz import Look


def telling(
    items: Sequence[Item], full: Mapping[str, Row], ours: Mapping[str, Row], number: int
) -> list[Item]:
    """`number` of the questions: answers that were lost, then won, then otherwise changed."""

    def order(item: Item) -> int:
        before, after = full[item.name], ours[item.name]
        if before["correct"] != after["correct"]:
            return 0 if before["correct"] else 1
        return 2 if before["answer"] != after["answer"] else 3

    return sorted(items, key=order)[:number]


def examples(
    loaded: Loaded, condition: Condition, items: Sequence[Item], limit: int, match: str
) -> list[Look]:
    """Each question answered again by both models, with what was kept, ready to be drawn."""
    found = []
    for item in items:
        images, small = [item.picture()], None
        if condition.on_pictures:
            keep = only_share(condition.build()[1], loaded)
            small = tr.downsample(loaded.processor, images, keep).images
        name = f"{item.kind}, {item.name}"
        found.append(
            look(
                loaded,
                item.question,
                images,
                condition.reduction(loaded),
                names=[name],
                expected=item.answer,
                accepts=partial(is_right, item, match=match),
                limit=limit,
                small=small,
            )
        )
    return found
