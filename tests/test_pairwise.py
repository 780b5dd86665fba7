"""The products that tests are run on by default: cut, and yet every two values meet."""

from __future__ import annotations

from itertools import combinations

from tests.pairwise import in_turn, pairs_of, pairwise


def pairs(rows):
    return {pair for row in rows for pair in combinations(enumerate(row), 2)}


def test_every_two_values_meet_in_far_fewer_rows():
    rows = pairwise("abcde", range(4), [True, False], ["x", "y", "z"])
    chosen = [row.values for row in rows if not row.marks]
    assert len(rows) == len({row.values for row in rows}) == 120
    assert pairs(chosen) == pairs(row.values for row in rows)
    assert len(chosen) <= 24


def test_of_two_axes_nothing_is_left_out_and_rows_that_cannot_be_are_not_made():
    assert not any(row.marks for row in pairwise("abc", "xyz"))
    some = [(1, "x", True), (1, "y", False), (2, "x", False)]
    assert [row.values for row in pairs_of(some)] == some


def test_in_turn_every_first_value_has_a_row_and_the_others_all_meet():
    rows = in_turn("abcde", [True, False], "xy")
    assert len(rows) == 20
    chosen = [row.values for row in rows if not row.marks]
    assert [first for first, *_ in chosen] == [*"abcde"]
    assert {(b, c) for _, b, c in chosen} == {(b, c) for b in (True, False) for c in "xy"}
