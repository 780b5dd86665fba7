"""Smaller pictures: the baseline that acts before the processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tokenreduce.downsample import downsample
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Prepared, Strategy, strategies
from tokenreduce.tokens import Plan, Tokens


@strategies.register("downsample")
@dataclass
class Downsample(Strategy):
    """Make the pictures smaller before the processor sees them.

    Inside a model there is nothing left to do: every token stays, and `reduce()` refuses it with
    the way out. `prepare` makes the pictures smaller, as `tokenreduce.downsample` does. Families
    whose number of tokens does not follow the size of a picture are refused; at equal cost
    `pooling` stands in for it there.
    """

    reduces: ClassVar[bool] = False
    site: ClassVar[str] = "pictures"
    needs: ClassVar[frozenset[str]] = frozenset({"pictures"})

    formula: ClassVar[str] = "pictures resized so that a share of their tokens is left"
    cost: ClassVar[str] = "none in the model: fewer tokens enter its vision tower, too"

    def prepare(self, processor: Any, images: Sequence[Any], keep: float) -> Prepared:
        """Pictures with about the share `keep` of their visual tokens."""
        made = downsample(processor, images, keep)
        return Prepared(made.images, made.full)

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """All of them: there are fewer already."""
        return Plan.everything(tokens.valid)

    def scheduler(self) -> Scheduler:
        """A quarter of the tokens, before the language model."""
        return Single(layer=0, keep=0.25)
