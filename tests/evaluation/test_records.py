"""Answers survive kills, are never mixed with another model's, and are put together in order."""

from __future__ import annotations

import json

import pytest

from tokenreduce.evaluation.records import Store, pack, unpack

NAMES = ["c", "a", "b"]


def row(name: str, answer: str = "yes"):
    return {"item": name, "answer": answer}


def test_parts_are_put_together_in_the_order_of_the_questions(tmp_path):
    store = Store(tmp_path)
    store.append("x", 0, [row("a"), row("b")])
    store.append("x", 1, [row("c", "ä")])
    assert not store.complete("x", NAMES)
    store.settle("x", NAMES)
    assert store.complete("x", NAMES)
    lines = (tmp_path / "answers" / "x.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines] == NAMES
    assert not list(tmp_path.glob("answers/*.part"))
    assert store.answers("x")["c"]["answer"] == "ä"


def test_a_line_that_a_kill_cut_short_is_asked_again(tmp_path):
    store = Store(tmp_path)
    store.append("x", 0, [row("a"), row("b")])
    part = tmp_path / "answers" / "x.0.part"
    part.write_bytes(part.read_bytes()[:-5])
    assert list(store.answers("x")) == ["a"]
    store.append("x", 0, [row("b", "again")])
    assert store.answers("x")["b"]["answer"] == "again"
    with pytest.raises(RuntimeError, match="1 answers of x are missing"):
        store.settle("x", NAMES)


def test_a_kill_within_a_character_costs_that_line_alone(tmp_path):
    store = Store(tmp_path)
    store.append("x", 0, [row("a"), row("b", "ä")])
    part = tmp_path / "answers" / "x.0.part"
    data = part.read_bytes()
    part.write_bytes(data[: data.rindex("ä".encode()) + 1])
    assert list(store.answers("x")) == ["a"]
    store.append("x", 0, [row("b", "ö")])
    assert store.answers("x")["b"]["answer"] == "ö"


def test_a_key_that_begins_like_another_is_not_it(tmp_path):
    store = Store(tmp_path)
    store.append("x.1", 0, [row("a")])
    assert store.answers("x") == {}


def test_another_model_is_refused_and_nothing_touched(tmp_path):
    store = Store(tmp_path)
    store.begin({"model": "one", "questions": "q"}, {"commit": "1"})
    before = (tmp_path / "evaluation.json").read_bytes()
    store.begin({"questions": "q", "model": "one"}, {"commit": "2"})
    with pytest.raises(ValueError, match=r'holds answers with model "one".*task\.folder') as told:
        Store(tmp_path).begin({"model": "two", "questions": "q"}, {})
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="with dtype null"):
        Store(tmp_path).begin({"model": "one", "questions": "q", "dtype": "bfloat16"}, {})
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_notes_add_up_and_keep_their_order(tmp_path):
    store = Store(tmp_path)
    store.note("z", condition={"strategy": None})
    store.note("a", condition={"strategy": "x"})
    store.note("z", prefill=[1])
    assert list(store.conditions()) == ["z", "a"]
    assert store.conditions()["z"]["prefill"] == [1]
    assert store.conditions()["z"]["condition"] == {"strategy": None}


@pytest.mark.parametrize("kept", [[], [0], [143], [0, 5, 71, 143], list(range(144))])
def test_kept_tokens_as_bits(kept):
    assert unpack(pack(kept, 144)) == kept
    assert len(pack(kept, 144)) == 36
