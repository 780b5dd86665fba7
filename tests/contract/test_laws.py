"""The laws of every case, on every tiny model that the installed release has.

Four strategies on every main family, and one on the variants: videos, other decoders, several
pictures, sliding windows. Twin of `tests/laws/test_matrix.py`, which has every strategy, schedule
and attention kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tokenreduce as tr
from tokenreduce.testing.batches import batch
from tokenreduce.testing.laws import Case
from tokenreduce.testing.models import FAMILIES, AbsentError
from tokenreduce.testing.trial import shared_model

pytestmark = pytest.mark.contract

STRATEGIES = ("pyramid_drop", "fastv", "divprune", "pooling")
"""Attention of the layer itself, of the layer before, features alone, and a plan that merges."""
CASES = [
    (name, strategy)
    for name, family in FAMILIES.items()
    for strategy in (STRATEGIES if family.main else STRATEGIES[:1])
]


@pytest.mark.parametrize(("family", "strategy"), CASES)
def test_laws(family: str, strategy: str, record_property: Callable[[str, object], None]) -> None:
    record_property("family", family)
    record_property("strategy", strategy)
    kinds = FAMILIES[family].attentions
    kind = kinds[(list(FAMILIES).index(family) + STRATEGIES.index(strategy)) % len(kinds)]
    try:
        model = shared_model(family, kind)
    except AbsentError as absent:
        pytest.skip(f"absent: {absent}")
    skip_where_the_plain_model_fails(family, model)
    chosen, adapter = tr.strategies.build(strategy), tr.adapters[FAMILIES[family].adapter]()
    assert not adapter.missing_evidence(
        chosen.needs, model
    )  # a refusal would pass as a law of its own
    Case(family, "explicit", kind).check(chosen)


def skip_where_the_plain_model_fails(family: str, model: Any) -> None:
    """A release may be unable to run a model at all, with or without a reduction.

    transformers 5.20 takes SmolVLM's patch size in pixels for the tokens of a tile.
    """
    try:
        with torch.no_grad():
            batch(FAMILIES[family], (1, 0, 2)).run(model, use_cache=False)
    except Exception as error:
        line = str(error).partition("\n")[0]
        pytest.skip(f"unable: the plain model raises {type(error).__name__}: {line}")
