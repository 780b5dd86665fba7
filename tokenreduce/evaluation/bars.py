"""What is seen of an evaluation while it runs: a bar on a screen, a line a condition elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenreduce.evaluation.conditions import Condition
from tokenreduce.viz.quantities import counted


@dataclass
class Bars:
    """Tells on stderr which condition is being answered, and how far it is.

    Attributes:
        shown: whether anything is said; None: bars on a screen, lines where stderr is a file.
        of: conditions that are planned.
    """

    shown: bool | None = None
    of: int = 0
    begun: int = 0

    @contextmanager
    def bar(self, condition: Condition, total: int, answered: int) -> Iterator[Any]:
        """A bar over the questions of a condition; so many are `answered` already."""
        from tqdm.auto import tqdm

        self.begun += 1
        name = f"{self.begun}/{max(self.of, self.begun)} {named(condition)}"
        screen = sys.stderr.isatty()
        if self.shown is not False and not screen and answered < total:
            print(f"tokenreduce: {name}: {counted(total - answered, 'question')}", file=sys.stderr)
        hidden = not (screen if self.shown is None else self.shown)
        with tqdm(
            total=total, initial=answered, desc=name, unit="question", disable=hidden, leave=False
        ) as bar:
            yield bar

    def resumed(
        self, conditions: Sequence[Condition], answers: Callable[[str], Any], at: Path
    ) -> None:
        """Says how many answers an earlier run has left in a folder."""
        number = sum(len(answers(condition.key)) for condition in conditions)
        if number and self.shown is not False:
            print(
                f"tokenreduce: {counted(number, 'answer')} found in {at}, going on", file=sys.stderr
            )


def named(condition: Condition) -> str:
    """A condition with its seed, where that makes a difference."""
    recipe = condition.recipe
    if recipe is None or recipe.name != "random":
        return condition.label
    return f"{condition.label}, seed {recipe.seed}"
