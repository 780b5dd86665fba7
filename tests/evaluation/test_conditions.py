"""Conditions are recipes and changes: what is planned, noted, and named in a folder of answers."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any, cast

import tokenreduce as tr
from tokenreduce.evaluation.conditions import (
    FULL,
    Condition,
    draws_beside,
    plan,
    smaller_pictures,
    spelled_out,
)
from tokenreduce.testing.models import FAMILIES

TESTED = Condition(tr.Recipe(tr.FastV("received"), tr.Single(2, 0.25), "keep", seed=3))
NOTED = {
    "strategy": {"name": "fastv", "score": "received"},
    "scheduler": {"name": "single", "keep": 0.25},
    "positions": "keep",
    "seed": 3,
    "change": None,
    "min_tokens": 0,
}


def test_what_is_noted_says_what_is_not_as_usual() -> None:
    assert TESTED.to_dict() == NOTED
    assert FULL.to_dict() == dict.fromkeys(NOTED) | {"seed": 0, "min_tokens": 0}
    assert json.loads(json.dumps(TESTED.to_dict())) == NOTED


def test_answers_of_earlier_versions_keep_their_names() -> None:
    """A folder of answers is used again: files are named by a digest of what is noted."""
    digest = hashlib.sha256(json.dumps(NOTED, sort_keys=True).encode()).hexdigest()[:8]
    assert TESTED.key == f"fastv-single-{digest}"
    assert FULL.key.startswith("full-")
    assert Condition(change="paraphrase").key.startswith("paraphrase-")


def test_baselines_differ_in_the_strategy_alone() -> None:
    planned = plan(TESTED, ["random", "stride", "downsample"], 2, ["paraphrase"])
    assert planned[:3] == [TESTED, FULL, Condition(change="paraphrase")]
    assert [(one.label, one.recipe and one.recipe.seed) for one in planned[3:]] == [
        ("random, single", 0),
        ("random, single", 1),
        ("stride, single", 0),
    ]
    for one in planned[3:]:
        assert one.to_dict() | {"strategy": 0, "seed": 0} == NOTED | {"strategy": 0, "seed": 0}
    assert plan(FULL, ["random"], 2, []) == [FULL]


def test_a_tested_baseline_is_one_of_its_draws() -> None:
    tested = Condition(tr.Recipe(tr.Random(), tr.Single(2, 0.25), "keep", seed=1))
    planned = plan(tested, ["random", "stride"], 2, [])
    assert "random, seed 1: one of the 2 draws" in (draws_beside(tested, planned) or "")
    assert draws_beside(TESTED, planned) is None
    assert draws_beside(FULL, planned) is None


def test_a_recipe_is_spelled_out_for_a_model() -> None:
    loaded = cast(Any, SimpleNamespace(model=FAMILIES["llava"].model()))
    found = spelled_out(tr.Recipe.parse("pyramid_drop"), loaded).recipe
    assert found is not None
    assert found.positions == "compact"
    assert spelled_out(tr.Recipe.parse("none"), loaded) == FULL
    assert spelled_out(tr.Recipe.parse("downsample"), loaded) != FULL


def test_smaller_pictures_leave_the_model_as_it_is() -> None:
    recipe = smaller_pictures(0.3).recipe
    assert recipe is not None
    assert recipe.schedule.stops(6) == (tr.Stop(0, 0.3),)
    assert recipe.in_model().strategy == tr.Keep()
