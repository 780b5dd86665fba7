"""Every deliberate fault is noticed: by the check that it names, and by the default run."""

import pytest

import tokenreduce as tr
from tests.faults import FAULTS, checks, families
from tokenreduce.testing import laws

CHECKS = {str(fault.check): fault.check for fault in FAULTS}


@pytest.mark.parametrize("check", CHECKS)
def test_sound(check):
    CHECKS[check]()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_noticed(fault, monkeypatch):
    fault.put(monkeypatch)
    with pytest.raises((AssertionError, tr.ReductionWarning)):
        fault.check()


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_the_default_run_notices(fault, monkeypatch):
    """The tests that a fault names are run with the fault put in, and each of them fails."""
    fault.put(monkeypatch)
    assert fault.killers
    for killer in fault.killers:
        code = pytest.main(["-qx", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", killer])
        assert code == pytest.ExitCode.TESTS_FAILED, f"{killer} ends with {code!r}"


@pytest.mark.full
@pytest.mark.parametrize("fault", families.FAULTS, ids=str)
def test_a_plain_decoder_does_not_show_what_only_some_families_do(fault, monkeypatch):
    """Else the fault says nothing about families, and belongs with those of the engine."""
    fault.put(monkeypatch)
    for rule in (laws.dropping_is_masking, laws.decoding_is_recomputing, laws.rows_stand_alone):
        checks.law(rule, "llama")()
    checks.score("llama")()


def test_there_are_enough():
    assert len(FAULTS) >= 50
    assert len({str(f) for f in FAULTS}) == len(FAULTS)
