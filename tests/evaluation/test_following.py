"""Which questions are looked at for whether a choice follows the text."""

from __future__ import annotations

from tokenreduce.data.items import heldout
from tokenreduce.evaluation.following import _edit, pairs, spread

ITEMS = heldout(0, 12, 9)
OTHERS = pairs(ITEMS)


def test_another_question_is_about_the_same_picture():
    assert len(OTHERS) > 60
    for item in ITEMS:
        if item.name in OTHERS:
            other = OTHERS[item.name]
            assert (other.image, other.question != item.question) == (item.image, True)


def test_every_picture_has_a_turn_before_any_has_two():
    assert len({item.image for item in spread(ITEMS, OTHERS, 12)}) == 12
    assert len({item.image for item in spread(ITEMS, OTHERS, 24)}) == 12
    assert len(spread(ITEMS, OTHERS, 24)) == len({x.name for x in spread(ITEMS, OTHERS, 24)}) == 24


def test_wordings_that_compare_come_first():
    def mismatch(item):
        change = _edit(item.question, OTHERS[item.name].question)
        return abs(change - _edit(item.question, item.paraphrase))

    first = spread(ITEMS, OTHERS, 12)
    every = [item for item in ITEMS if item.name in OTHERS]
    for item in first:
        own = [mismatch(x) for x in every if x.image == item.image]
        assert mismatch(item) == min(own)
    assert sum(mismatch(x) <= 0.15 for x in first) >= 11
