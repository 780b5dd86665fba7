"""What `task=solve` writes of a schedule: its numbers are those of the cost model."""

from __future__ import annotations

import pytest
import transformers

from tokenreduce.cost import CONVENTIONS, cost
from tokenreduce.schedulers import Pyramid
from tokenreduce.solving.summary import summary


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_without_a_tower_flops_are_those_of_layers_and_selection(convention):
    """The tower of a bare decoder is told unknown; what is counted follows the convention."""
    config = transformers.LlamaConfig()
    found = summary(config, Pyramid(), 576, 60, pictures=1, convention=convention)
    assert "vision" in found["tower_unknown"]
    price = cost(config, Pyramid(), 576, 60, convention)
    choice = CONVENTIONS[convention].flops_per_mac * price.selection_macs
    assert found["flops"] == [
        ["decoder layers", price.flops_full, price.flops],
        ["token selection, at most", 0, choice],
    ]
