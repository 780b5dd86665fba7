"""Checks of options: what passes comes back in its own kind, what does not is one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenreduce import checks
from tokenreduce.errors import BadOption


@pytest.mark.parametrize(
    ("check", "value", "found"),
    [
        (checks.share, 1, 1.0),
        (checks.share, np.float32(0.5), 0.5),
        (lambda x, name: checks.integer(x, name, 0), np.int64(3), 3),
        (checks.integers, [1, 4], [1, 4]),
        (checks.integers, (2,), [2]),
        (checks.sequence, [1, 2], (1, 2)),
        (checks.layer_or_share, 16.0, 16),
        (checks.layer_or_share, 0.5, 0.5),
        (lambda x, name: checks.one_of(x, ("keep", "compact"), name), "keep", "keep"),
    ],
)
def test_what_fits_comes_back_in_its_own_kind(
    check: Callable[[Any, str], Any], value: Any, found: Any
) -> None:
    assert check(value, "it") == found
    assert type(check(value, "it")) is type(found)


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        (checks.share, 1.5, "it must be a number between 0 and 1, not 1.5"),
        (checks.share, True, "(a truth value)"),
        (checks.share, "0.5", "(text)"),
        (checks.share, math.nan, "not nan"),
        (lambda x, name: checks.integer(x, name, 1), 0, "a whole number of at least 1, not 0"),
        (lambda x, name: checks.integer(x, name, 1), 2.0, "not 2.0"),
        (checks.integers, [], "a list of whole numbers"),
        (checks.integers, [1, True], "a list of whole numbers"),
        (checks.integers, "12", "a list of whole numbers"),
        (checks.sequence, "ab", "a list with at least one entry"),
        (checks.sequence, range(20_000), "20,000 entries"),
        (checks.layer_or_share, 1.5, "a layer (a whole number counting from 0) or a share"),
        (lambda x, name: checks.one_of(x, ("keep", "compact"), name), "kep", "mean 'keep'?"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    check: Callable[[Any, str], Any], value: Any, says: str
) -> None:
    with pytest.raises(BadOption) as error:
        check(value, "it")
    assert says in str(error.value)
    assert "it" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_number_too_long_to_print_is_told_as_such() -> None:
    assert checks.integer(10**5000, "it", 1) == 10**5000
    with pytest.raises(BadOption, match="not a number of thousands of digits"):
        checks.integer(-(10**5000), "it", 1)
