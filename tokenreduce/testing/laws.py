"""The laws that every strategy obeys, and how to check them.

From the tests of a package with its own method:

    import pytest
    from tokenreduce.testing import laws
    from my_package import Norm

    @pytest.mark.parametrize("case", laws.cases(), ids=str)
    def test_laws(case):
        case.check(Norm())

    def test_choices():
        laws.check_choices(Norm())

Each law is also a function of its own (`choices`, `model_laws`, `state_laws`), for a method that
is still in the making: `laws.dropping_is_masking(laws.trial(Norm(), "llava"))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tokenreduce.scheduler import Scheduler, Stop
from tokenreduce.strategy import Strategy
from tokenreduce.testing.choices import check as check_choices
from tokenreduce.testing.model_laws import (
    TOLERANCE,
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
from tokenreduce.testing.models import FAMILIES, LAYERS, Family
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

__all__ = [
    "ALWAYS",
    "ONCE",
    "OWN",
    "TOLERANCE",
    "Case",
    "a_gate_of_ones_changes_nothing",
    "answers_change_no_choice",
    "asking_without_getting_is_loud",
    "calls_agree",
    "cases",
    "check",
    "check_choices",
    "checkpointing_changes_nothing",
    "compacting_is_renumbering",
    "decoding_is_recomputing",
    "decoding_stores_what_is_left",
    "distinct",
    "dropping_is_masking",
    "generations_do_not_disturb_each_other",
    "keeping_all_is_the_plain_model",
    "order_ascends_and_budget_is_exact",
    "rows_stand_alone",
    "text_logits_give_the_same_loss",
    "the_model_is_left_as_it_was",
    "too_few_tokens_are_left_alone",
    "trial",
]

Law = Callable[[Trial], None]

ALWAYS: tuple[Law, ...] = (
    dropping_is_masking,
    decoding_is_recomputing,
    rows_stand_alone,
    order_ascends_and_budget_is_exact,
    decoding_stores_what_is_left,
    compacting_is_renumbering,
)
"""Laws for every case."""

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
"""Laws that do not depend on the schedule: checked with the strategy's own."""

OWN = "own"
"""In place of a scheduler's name: the strategy's own schedule."""


@dataclass(frozen=True)
class Case:
    """A model family, a schedule and an attention kind, on which a strategy is tried."""

    family: str
    scheduler: str
    attention: str

    def __str__(self) -> str:
        return f"{self.family}-{self.scheduler}-{self.attention}"

    def trial(self, strategy: Strategy) -> Trial:
        """The strategy on this case's model, under its schedule."""
        chosen = strategy.scheduler() if self.scheduler == OWN else small(self.scheduler)
        return Trial(strategy, chosen, FAMILIES[self.family], self.attention)

    def laws(self) -> tuple[Law, ...]:
        """The laws that this case checks."""
        whole = self.scheduler == OWN and FAMILIES[self.family].main
        return ALWAYS + ONCE if whole else ALWAYS

    def check(self, strategy: Strategy) -> None:
        """Every law of the case.

        A strategy whose evidence the family cannot measure must be refused with that reason.

        Raises:
            AssertionError: a law is broken; the message names it, the case and the numbers.
        """
        import tokenreduce

        tried = self.trial(strategy)
        adapter = tokenreduce.adapters[FAMILIES[self.family].adapter]()
        missing = adapter.lacks(strategy.needs, tried.model)
        if missing:
            refused(tried, TypeError, min(missing))
            return
        with one_thread():
            for law in self.laws():
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


def cases(
    *,
    families: Iterable[str] | None = None,
    scheduled: Iterable[str] | None = None,
    attentions: Iterable[str] = ("sdpa", "eager"),
) -> list[Case]:
    """What a strategy is tried on.

    By default one family per adapter under every registered scheduler (`distinct`) and the
    strategy's own, and the other families under the strategy's own and one that begins before
    layer 0.

    Args:
        families: names of `models.FAMILIES`; all of them.
        scheduled: names of schedulers, or `"own"`; all that are registered, and `"own"`.
        attentions: attention implementations of transformers.
    """
    every = [OWN, *distinct()]
    found = []
    for name in FAMILIES if families is None else families:
        few = [OWN, "explicit"]
        chosen = scheduled if scheduled is not None else every if FAMILIES[name].main else few
        found += [
            Case(name, s, attention)
            for s in chosen
            for attention in attentions
            if attention in FAMILIES[name].attentions
        ]
    return found


def distinct() -> list[str]:
    """Names of the registered schedulers, one for each row of stops that they give at inference.

    A schedule that only training tells from another (an annealed one) is no case of its own.
    """
    import tokenreduce

    found: dict[tuple[Stop, ...], str] = {}
    for name in tokenreduce.schedulers:
        found.setdefault(small(name).stops(LAYERS), name)
    return list(found.values())


def check(strategy: Strategy, among: Iterable[Case] | None = None) -> None:
    """Every law of a strategy, by itself and on every case; minutes, as cases are many."""
    check_choices(strategy)
    for case in cases() if among is None else among:
        case.check(strategy)


def trial(
    strategy: Strategy,
    family: str | Family = "llava",
    scheduler: str | Scheduler | None = None,
    attention: str | None = None,
) -> Trial:
    """One trial, for a single law: `dropping_is_masking(trial(Norm(), "llava"))`."""
    if scheduler is None:
        scheduler = strategy.scheduler()
    elif isinstance(scheduler, str):
        scheduler = small(scheduler)
    recipe = FAMILIES[family] if isinstance(family, str) else family
    return Trial(strategy, scheduler, recipe, attention or recipe.attentions[0])
