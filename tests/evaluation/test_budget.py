"""Strategies at one budget: each keeps its rule, and what it keeps is solved for."""

from __future__ import annotations

import pytest

from tests.untrained import untrained
from tokenreduce.config import build_reader, compose
from tokenreduce.cost import cost, shape_of
from tokenreduce.evaluation.budget import lengths
from tokenreduce.inference.loaded import Loaded
from tokenreduce.scheduler import schedulers
from tokenreduce.tasks.evaluate import chosen

EVALUATE = ["task=evaluate", "device=cpu", "task.limit=3"]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return untrained()


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [("fastv", "single"), ("pyramid_drop", "pyramid"), ("downsample", "single")],
)
def test_every_rule_meets_the_budget(loaded: Loaded, strategy: str, rule: str) -> None:
    config = compose([*EVALUATE, f"strategy={strategy}", "task.flops=0.6"])
    items = build_reader(config).items(3, seed=0)
    visual, text = lengths(loaded, items)
    assert visual == 144
    recipe = chosen(config, loaded, items).recipe
    assert recipe is not None
    assert schedulers.name_of(recipe.schedule) == rule
    price = cost(shape_of(loaded.model.config), recipe.schedule, visual, text)
    assert 0.58 < price.share <= 0.6


def test_without_a_budget_the_schedule_is_as_it_is(loaded: Loaded) -> None:
    config = compose([*EVALUATE, "strategy=fastv"])
    found = chosen(config, loaded, build_reader(config).items(3, seed=0))
    assert found.to_dict()["scheduler"] == {"name": "single"}  # the paper's: all defaults


def test_a_rule_without_a_share_is_refused(loaded: Loaded) -> None:
    config = compose([*EVALUATE, "strategy=fastv", "scheduler.name=stochastic", "task.flops=0.6"])
    with pytest.raises(ValueError, match="scheduler=stochastic has no share to solve for"):
        chosen(config, loaded, build_reader(config).items(3, seed=0))
