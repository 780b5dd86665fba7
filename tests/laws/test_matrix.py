"""Every registered strategy, scheduler, adapter and attention kind obeys the laws.

By default every two of the four meet, and most three (`tokenreduce.testing.matrix`); with `--full`
all four do.
"""

from contextlib import suppress
from dataclasses import replace
from itertools import product

import pytest
import torch

import tokenreduce as tr
from tokenreduce.testing import laws, matrix
from tokenreduce.testing.model_laws import refused
from tokenreduce.testing.models import FAMILIES, LAYERS, AbsentError
from tokenreduce.testing.trial import small

STRATEGIES = list(tr.strategies)

TIES = {
    # two farthest tokens are equally far to the last bits of fp32: the sums of a padded batch and
    # of a row alone decide between them (docs/conformance.md)
    ("divprune", "llava_onevision", "single"),
}


def pytest_generate_tests(metafunc):
    if metafunc.function is test_laws:
        rows = matrix.rows(metafunc.config.getoption("--full"))
        ids = [f"{strategy}-{case}" for strategy, case in rows]
        metafunc.parametrize(("strategy", "case"), rows, ids=ids)


def test_laws(strategy, case):
    if not case.once and (strategy, case.family, case.scheduler) in TIES:
        pytest.skip("a tie in fp32 decides: the choice of a row alone may be another one")
    try:
        case.check(tr.strategies.build(strategy))
    except AbsentError as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_choices(strategy):
    laws.check_choices(tr.strategies.build(strategy))


def test_every_strategy_meets_a_family():
    """Else the laws would hold of it because they are not tried."""
    acting = {name for name, kind in tr.strategies.items() if kind.site != "pictures"}
    assert {strategy for strategy, _ in matrix.rows()} == acting


def test_what_a_family_cannot_measure_is_refused_with_that_reason():
    refusals = matrix.refusals()
    assert ("fastervlm", "llama") in refusals
    for strategy, family in refusals:
        trial = laws.trial(tr.strategies.build(strategy), family)
        missing = tr.adapters[FAMILIES[family].adapter].unmeasured(trial.strategy.needs)
        with suppress(AbsentError):  # older releases of transformers lack families
            refused(trial, TypeError, min(missing))


class Wobbling(tr.Stride):
    """Chooses otherwise in the backward pass: harmless where a plan is made once and kept."""

    def plan(self, tokens, budget):
        backward = torch._C._current_graph_task_id() >= 0
        return tr.Random().plan(replace(tokens, seed=int(backward)), budget)


def test_a_plan_is_made_once_and_kept_for_the_backward_pass():
    laws.checkpointing_changes_nothing(laws.trial(Wobbling(), "llama-gqa", "explicit"))


# -- the rotation -------------------------------------------------------------------------------


SHIPPED = matrix.shipped()
REFUSED = {(name, family) for name, family in matrix.refusals() if name in SHIPPED}


def met(strategy):
    """The default cases of a strategy on main families that it is not refused on."""
    return [c for c in matrix.pairwise(strategy) if (strategy, c.family) not in REFUSED]


DROPS = [name for name in SHIPPED if any(matrix.serves(f, name) for f in matrix.main())]
"""All but those that act on pictures, before there are tokens."""
ROWS = [(name, *vars(case).values()) for name in DROPS for case in met(name)]
"""Strategy, family, schedule, attention kind of every default row on a main family."""
MAIN = [family.name for family in matrix.main()]
SCHEDULES = [laws.OWN, *laws.distinct()]
AXES = {"strategy": DROPS, "family": MAIN, "schedule": SCHEDULES, "attention": matrix.ATTENTIONS}


@pytest.mark.parametrize(
    "axes",
    [
        ("strategy", "family"),
        ("strategy", "schedule"),
        ("strategy", "attention"),
        ("family", "schedule"),
        ("family", "attention"),
        ("schedule", "attention"),
        ("strategy", "schedule", "attention"),
        ("family", "schedule", "attention"),
    ],
    ids="-".join,
)
def test_every_pair_meets_and_two_of_the_triples_do(axes):
    at = [list(AXES).index(axis) for axis in axes]
    seen = {tuple(row[i] for i in at) for row in ROWS}
    expected = set(product(*(AXES[axis] for axis in axes)))
    if axes == ("strategy", "family"):
        expected -= REFUSED
    assert seen == expected


def test_the_rotation_has_a_row_for_every_strategy_on_every_main_family():
    pairs = [(name, case.family) for name in SHIPPED for case in matrix.pairwise(name)]
    assert len(set(pairs)) == len(pairs) == len(SHIPPED) * len(MAIN)
    assert len(pairs) - len(ROWS) == len(REFUSED)
    assert {FAMILIES[name].adapter for name in MAIN} == set(tr.adapters), "a tiny model is missing"
    assert [matrix.place(name) for name in SHIPPED] == list(range(len(SHIPPED)))


def test_default_rows_have_every_family_and_the_laws_that_no_schedule_changes():
    rows = matrix.rows()
    assert len(set(rows)) == len(rows)
    assert {case.family for _, case in rows} == set(FAMILIES)
    whole = [(name, case) for name, case in rows if case.once]
    assert {name for name, _ in whole} >= set(DROPS)
    assert {case.style for _, case in whole} == set(matrix.STYLES)
    for name in matrix.REFERENCE:
        assert {case.family for other, case in whole if other == name} == set(MAIN)
        variants = matrix.variants(name)
        assert {(name, case) for case in variants} <= set(rows)
        assert {case.family for case in variants} == set(FAMILIES) - set(MAIN)
        assert {case.attention for case in variants} == set(matrix.ATTENTIONS)


def test_the_whole_product_has_every_default_row():
    full = set(matrix.rows(full=True))
    for name, case in matrix.rows():
        whole = laws.Case(case.family, case.scheduler, case.attention, case.once)
        assert (name, whole) in full
    assert len(full) > 10 * len(matrix.rows())


def test_a_family_without_an_attention_kind_takes_the_one_that_it_has():
    assert FAMILIES["paligemma2"].attentions == ("eager",)
    for name in DROPS:
        (case,) = (case for case in matrix.variants(name) if case.family == "paligemma2")
        assert case.attention == "eager"
    assert {c.attention for c in matrix.product(["paligemma2"])} == {"eager"}


# -- what an author of a method gets ------------------------------------------------------------


def test_a_plug_in_has_the_same_cases_whatever_else_is_installed():
    cases = laws.cases("norm")
    assert cases == laws.cases("norm")
    assert len(cases) == len(FAMILIES) + 1
    assert {case.family for case in cases} == set(FAMILIES)
    main = {(c.scheduler, c.attention) for c in cases if c.family in MAIN and not c.once}
    assert main == set(matrix.combos())
    assert len([case for case in cases if case.once]) == 1
    starts = {laws.cases(name)[0] for name in ("norm", "quota", "tea")}
    assert len(starts) > 1, "the name decides where the rotation begins"


def test_naming_families_schedules_or_attention_kinds_gives_their_product():
    few = laws.cases(families=["llama", "llava"], scheduled=["single"], attentions=["sdpa"])
    assert few == [laws.Case("llama", "single", "sdpa"), laws.Case("llava", "single", "sdpa")]
    assert laws.cases(families=["llava"]) == [
        laws.Case("llava", *combo) for combo in matrix.combos()
    ]
    full = laws.cases(full=True)
    assert set(laws.cases(attentions=["sdpa", "eager"])) < set(full)
    assert {case.family for case in full if case.once} == set(MAIN)
    assert not any(case.style for case in full)


def test_every_scheduler_is_in_the_matrix_or_gives_the_stops_of_one_that_is():
    stops = {small(name).stops(LAYERS) for name in laws.distinct()}
    assert {small(name).stops(LAYERS) for name in tr.schedulers} == stops
    assert set(laws.distinct()) == set(tr.schedulers) - {"curriculum", "stochastic"}
    assert all(any(stop.keep < 1 for stop in given) for given in stops)


def test_evidence_that_nobody_measures_is_refused_where_it_is_asked_for():
    class Needy(tr.Stride):
        needs = frozenset({"attention", "tea leaves"})

    for case in laws.cases(families=["llama", "llava"], scheduled=["single"], attentions=["sdpa"]):
        case.check(Needy())  # passes only when the refusal names what is missing
        with pytest.raises(TypeError, match="tea leaves"):
            case.trial(Needy()).forward()


def test_options_of_strategies_obey_the_laws():
    for strategy in (tr.FastV(score="received"), tr.Pooling(mode="max")):
        laws.check_choices(strategy)
        chosen = laws.cases(
            families=["llama-gqa", "llava_next"], scheduled=["explicit"], attentions=["sdpa"]
        )
        for case in chosen:
            case.check(strategy)
