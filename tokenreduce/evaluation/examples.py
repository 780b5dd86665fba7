"""Some of the questions to look at: first those whose answers the reduction has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tokenreduce.data.items import Item
from tokenreduce.evaluation.records import Row
from tokenreduce.evaluation.scoring import is_right
from tokenreduce.inference.loaded import Loaded
from tokenreduce.inference.look import look
from tokenreduce.recipe import Recipe
from tokenreduce.viz import Look
from tokenreduce.viz.quantities import counted

CHANGES = ("lost", "gained", "otherwise changed", "unchanged")


def telling(
    items: Sequence[Item], full: Mapping[str, Row], ours: Mapping[str, Row], number: int
) -> list[Item]:
    """`number` of the questions: answers that were lost, then gained, then otherwise changed."""
    return sorted(items, key=lambda item: change(full[item.name], ours[item.name]))[:number]


def change(before: Row, after: Row) -> int:
    """What became of an answer, as a place in `CHANGES`."""
    if before["correct"] != after["correct"]:
        return 0 if before["correct"] else 1
    return 2 if before["answer"] != after["answer"] else 3


def picked(
    items: Sequence[Item], shown: Sequence[Item], full: Mapping[str, Row], ours: Mapping[str, Row]
) -> str:
    """One sentence: which of the questions a report shows, and how many there are of each kind."""

    def tally(those: Sequence[Item]) -> list[int]:
        kinds = [change(full[item.name], ours[item.name]) for item in those]
        return [kinds.count(kind) for kind in range(len(CHANGES))]

    both = zip(CHANGES, tally(shown), tally(items), strict=True)
    parts = [f"{some} of {all_} {name}" for name, some, all_ in both if all_]
    return (
        f"Shown below: {len(shown)} of {counted(len(items), 'question')}, those with changed "
        f"answers first ({', '.join(parts)}). They are no sample of all."
    )


def accuracy(row: Row) -> str:
    """One sentence on a row of the table: right answers, and the difference to the full model."""
    low, high = (100 * bound for bound in row["interval"])
    name = "Full model" if row["role"] == "full" else "Reduced"
    text = f"{name}: {100 * row['accuracy']:.1f} % right (95 % interval {low:.1f} to {high:.1f})"
    if row["role"] != "full":
        low, high = (100 * bound for bound in row["difference_interval"])
        text += f", {100 * row['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
    return f"{text}, {counted(row['questions'], 'question')}."


def examples(
    loaded: Loaded, recipe: Recipe, items: Sequence[Item], limit: int, match: str
) -> list[Look]:
    """Each question answered again by both models, with what was kept, ready to be drawn."""
    found = []
    for item in items:
        name = f"{item.kind}, {item.name}"
        found.append(
            look(
                loaded,
                item.question,
                [item.picture()],
                recipe,
                names=[name],
                expected=item.answer,
                accepts=partial(is_right, item, match=match),
                limit=limit,
            )
        )
    return found
