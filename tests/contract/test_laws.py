"""The laws of every case, for four strategies on every main family of the installed release.

Twin of `tests/laws/test_matrix.py`, which has every strategy, schedule and attention kind.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import tokenreduce as tr
from tokenreduce.testing.laws import Case
from tokenreduce.testing.models import FAMILIES, AbsentError
from tokenreduce.testing.trial import shared_model

pytestmark = pytest.mark.contract

STRATEGIES = ("pyramid_drop", "fastv", "divprune", "pooling")
"""Attention of the layer itself, of the layer before, features alone, and a plan that merges."""
MAIN = [name for name, family in FAMILIES.items() if family.main]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", MAIN)
def test_laws(family: str, strategy: str, record_property: Callable[[str, object], None]) -> None:
    record_property("family", family)
    record_property("strategy", strategy)
    kinds = FAMILIES[family].attentions
    kind = kinds[(MAIN.index(family) + STRATEGIES.index(strategy)) % len(kinds)]
    try:
        shared_model(family, kind)
    except AbsentError as absent:
        pytest.skip(str(absent))
    Case(family, "explicit", kind).check(tr.strategies.build(strategy))
