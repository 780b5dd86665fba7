"""A case: a model family, a schedule and an attention kind, and the laws that it checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tokenreduce.strategy import Strategy
from tokenreduce.testing.model_laws import (
    a_gate_of_ones_changes_nothing,
    compacting_is_renumbering,
    decoding_is_recomputing,
    decoding_stores_what_is_left,
    dropping_is_masking,
    keeping_all_is_the_plain_model,
    order_ascends_and_budget_is_exact,
    refused,
    rows_stand_alone,
    too_few_tokens_are_left_alone,
)
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.state_laws import (
    answers_change_no_choice,
    asking_without_getting_is_loud,
    calls_agree,
    checkpointing_changes_nothing,
    generations_do_not_disturb_each_other,
    text_logits_give_the_same_loss,
    the_model_is_left_as_it_was,
)
from tokenreduce.testing.trial import Trial, small

Law = Callable[[Trial], None]

ALWAYS: tuple[Law, ...] = (
    dropping_is_masking,
    decoding_is_recomputing,
    rows_stand_alone,
    order_ascends_and_budget_is_exact,
    decoding_stores_what_is_left,
    compacting_is_renumbering,
)
"""Laws for every strategy, family, schedule and attention kind."""

ONCE: tuple[Law, ...] = (
    keeping_all_is_the_plain_model,
    too_few_tokens_are_left_alone,
    a_gate_of_ones_changes_nothing,
    checkpointing_changes_nothing,
    text_logits_give_the_same_loss,
    answers_change_no_choice,
    the_model_is_left_as_it_was,
    calls_agree,
    generations_do_not_disturb_each_other,
    asking_without_getting_is_loud,
)
"""Laws that do not depend on the schedule: cases of their own, under the strategy's own."""

OWN = "own"
"""In place of a scheduler's name: the strategy's own schedule."""


@dataclass(frozen=True)
class Case:
    """What a strategy is tried on, and which laws it is held to there.

    Attributes:
        family: the name of one of `models.FAMILIES`.
        scheduler: the name of a scheduler, or `OWN`.
        attention: an attention implementation of transformers.
        once: whether the laws are those that do not depend on the schedule (`ONCE`).
        style: the one style of activation checkpointing to try among them
            (`state_laws.STYLES`); all when empty.
    """

    family: str
    scheduler: str
    attention: str
    once: bool = False
    style: str = ""

    def __str__(self) -> str:
        parts = [self.family, self.scheduler, self.attention]
        return "-".join(parts + ["once"] * self.once + [self.style] * bool(self.style))

    def trial(self, strategy: Strategy) -> Trial:
        """The strategy on this case's model, under its schedule."""
        chosen = strategy.scheduler() if self.scheduler == OWN else small(self.scheduler)
        return Trial(strategy, chosen, FAMILIES[self.family], self.attention)

    def laws(self) -> tuple[Law, ...]:
        """The laws that this case checks."""
        return ONCE if self.once else ALWAYS

    def check(self, strategy: Strategy) -> None:
        """Every law of the case.

        A strategy whose evidence the family cannot measure must be refused with that reason.

        Raises:
            AssertionError: a law is broken; the message names it, the case and the numbers.
        """
        import tokenreduce

        tried = self.trial(strategy)
        adapter = tokenreduce.adapters[FAMILIES[self.family].adapter]()
        missing = adapter.missing_evidence(strategy.needs, tried.model)
        if missing:
            refused(tried, TypeError, min(missing))
            return
        with one_thread():
            for law in self.laws():
                if self.style and law is checkpointing_changes_nothing:
                    checkpointing_changes_nothing(tried, (self.style,))
                else:
                    law(tried)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny models compute in one thread: several wait for each other more than they help.

    Two workers of a test run on two cores take ten times as long with two threads each.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
