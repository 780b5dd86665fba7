"""The laws that every strategy obeys, and how to check them.

From the tests of a package with its own method:

    import pytest
    from tokenreduce.testing import laws
    from my_package import Norm

    @pytest.mark.parametrize("case", laws.cases("norm"), ids=str)
    def test_laws(case):
        case.check(Norm())

    def test_choices():
        laws.check_choices(Norm())

Each law is also a function of its own (`choices`, `model_laws`, `state_laws`), for a method that
is still in the making: `laws.dropping_is_masking(laws.trial(Norm(), "llava"))`.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenreduce.scheduler import Scheduler
from tokenreduce.strategy import Strategy
from tokenreduce.testing import matrix
from tokenreduce.testing.case import ALWAYS, ONCE, OWN, Case
from tokenreduce.testing.choices import check as check_choices
from tokenreduce.testing.matrix import distinct
from tokenreduce.testing.model_laws import (
    TOLERANCE,
    a_gate_of_ones_changes_nothing,
    compacting_is_renumbering,
    decoding_is_recomputing,
    decoding_stores_what_is_left,
    dropping_is_masking,
    keeping_all_is_the_plain_model,
    order_ascends_and_budget_is_exact,
    rows_stand_alone,
    too_few_tokens_are_left_alone,
)
from tokenreduce.testing.models import FAMILIES, Family
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


def cases(
    strategy: str = "",
    *,
    full: bool = False,
    families: Iterable[str] | None = None,
    scheduled: Iterable[str] | None = None,
    attentions: Iterable[str] | None = None,
) -> list[Case]:
    """What a strategy is tried on: a set that takes seconds, or the whole product.

    The default set has one family per adapter, each under one schedule and attention kind, so that
    every schedule is met under every attention kind; the other families under one that begins
    before layer 0; and one case for the laws that do not depend on the schedule (`matrix`).

    Args:
        strategy: its name. Which schedule meets which family depends on it, and on nothing else
            that is installed (`matrix.place`).
        full: the whole product, which takes minutes: the main families under every registered
            scheduler (`distinct`) and the strategy's own, each under every attention kind.
        families: names of `models.FAMILIES`. With this or one of the following the answer is the
            product of what is named, and of all of what is not.
        scheduled: names of schedulers, or `"own"`.
        attentions: attention implementations of transformers.
    """
    if families is not None or scheduled is not None or attentions is not None:
        return matrix.product(families, scheduled, attentions or matrix.ATTENTIONS)
    if full:
        return matrix.product() + [c for one in matrix.main() for c in matrix.thorough(one)]
    return matrix.pairwise(strategy) + matrix.variants(strategy) + matrix.once(strategy)


def check(strategy: Strategy, among: Iterable[Case] | None = None) -> None:
    """Every law of a strategy, by itself and on every case of the default set, or of `among`."""
    import tokenreduce

    check_choices(strategy)
    names = [name for name, kind in tokenreduce.strategies.items() if kind is type(strategy)]
    for case in cases(*names[:1]) if among is None else among:
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
