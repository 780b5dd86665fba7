"""What a method reads, and its position rule, where its options decide."""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tokenreduce.evidence import at_layer

SPARSE = {
    "text_attention_before", "attention_before", "text_behind",
    "embedding", "embedding_valid", "text_embedding",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("fastv", {}, {"attention_before"}),
        ("fastv", {"score": "received"}, {"attention_received"}),
        ("sparsevlm", {}, SPARSE),
        ("sparsevlm", {"version": 2}, SPARSE | {"text_rotation_before"}),
        ("sparsevlm", {"version": 2, "distance": False}, SPARSE),
        ("hiprune", {"layer": 3}, {"grid", "tower_attention", at_layer("tower_attention", 3)}),
        ("scorer_mlp", {}, set()),
        ("scorer_mlp", {"text": True}, {"text", "text_valid"}),
        ("random", {}, set()),
    ],
)
def test_what_is_read_follows_the_options(
    name: str, options: dict[str, Any], needs: set[str]
) -> None:
    assert tr.strategies.build(name, **options).needs == needs


def test_options_that_change_later_count() -> None:
    """What is read of a method is what it does, also when an option was set on an instance."""
    method = tr.FastV()
    method.score = "received"
    assert method.needs == {"attention_received"}


def test_the_position_rule_follows_the_version() -> None:
    assert tr.SparseVLM().positions == "compact"
    assert tr.SparseVLM(version=2).positions == "keep"


def test_whether_the_question_is_read_follows_the_options() -> None:
    assert [tr.ScorerMLP(text=text).reads_text for text in (False, True)] == [False, True]
    assert tr.FastV().reads_text is True
    assert tr.Random().reads_text is False


def test_a_class_attribute_states_a_constant() -> None:
    """A method whose facts do not depend on its options says them as before."""

    class Mine(tr.Random):
        needs = frozenset({"grid"})
        positions = "compact"
        reads_text = True

    assert (Mine.needs, Mine().needs) == ({"grid"}, {"grid"})
    assert (Mine().positions, Mine().reads_text) == ("compact", True)
