"""Every registered strategy x scheduler x adapter x attention kind obeys the laws."""

import pytest

import tokenreduce as tr
from tokenreduce.testing import laws
from tokenreduce.testing.models import FAMILIES, LAYERS
from tokenreduce.testing.trial import small

STRATEGIES = list(tr.strategies)
CASES = laws.cases()


TIES = {
    # two farthest tokens are equally far to the last bits of fp32: the sums of a padded batch and
    # of a row alone decide between them (docs/conformance.md)
    ("divprune", "llava_onevision", "single"),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_laws(strategy, case):
    if (strategy, case.family, case.scheduler) in TIES:
        pytest.skip("a tie in fp32 decides: the choice of a row alone may be another one")
    case.check(tr.strategies.build(strategy))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_choices(strategy):
    laws.check_choices(tr.strategies.build(strategy))


def test_the_matrix_has_everything_that_is_registered():
    assert len(STRATEGIES) >= 7
    assert len(tr.schedulers) >= 5
    assert len(tr.adapters) >= 3
    covered = {
        (FAMILIES[case.family].adapter, case.scheduler, case.attention)
        for case in CASES
        if FAMILIES[case.family].main
    }
    expected = {
        (adapter, scheduler, attention)
        for adapter in tr.adapters
        for scheduler in [laws.OWN, *laws.distinct()]
        for attention in ("sdpa", "eager")
    }
    assert covered == expected, "an adapter without a tiny model in tokenreduce.testing.models?"
    assert {case.family for case in CASES} == set(FAMILIES)
    assert len(CASES) >= 56


def test_every_scheduler_is_in_the_matrix_or_gives_the_stops_of_one_that_is():
    stops = {small(name).stops(LAYERS) for name in laws.distinct()}
    assert {small(name).stops(LAYERS) for name in tr.schedulers} == stops
    assert set(laws.distinct()) == set(tr.schedulers) - {"curriculum", "stochastic"}


def test_every_case_runs_under_a_schedule_that_reduces():
    for case in CASES:
        if case.scheduler != laws.OWN:
            trial = case.trial(tr.Stride())
            assert any(stop.keep < 1 for stop in trial.stops), str(case)


def test_evidence_that_a_family_lacks_is_refused_with_that_reason():
    class Needy(tr.Stride):
        needs = frozenset({"attention", "tea leaves"})

    for family in ("llama", "llava"):
        for case in laws.cases(families=[family], scheduled=["single"], attentions=["sdpa"]):
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
