"""The recorded generations: every step's tokens, logits, kept sets and cache lengths.

Twin of `tests/parity`, which has every recording of every method.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.parity.cases import Case, cases
from tests.parity.compare import excess, unequal
from tests.parity.decoding import decode, recordings, step_differences

pytestmark = pytest.mark.contract

CASES = [*cases("vtw", "generate"), *cases("pyramiddrop", "generate")]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_generation_is_the_recorded_one(
    case: Case, attention: str, record_property: Callable[[str, object], None]
) -> None:
    model, found = case.model(attention), []
    for recorded in recordings(case):
        decoded = decode(case, model, recorded)
        found.append(step_differences(case, model, recorded, decoded))
        assert all(not unequal(case.kept, kept) for kept in decoded.kept)
    record_property("gap", max(differences["steps"] for differences in found))
    assert found
    assert not any(excess(differences) for differences in found), found
