"""What a fault is, and which tests of the default run may be named as its killers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from tokenreduce.testing import matrix

Put = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """A fault, the check that notices it, and the tests of the default run that do.

    Attributes:
        put: puts the fault in.
        check: passes without the fault, and fails with it.
        killers: node ids; each of them fails with the fault.
    """

    put: Put
    check: Callable[[], None]
    killers: tuple[str, ...]

    def __str__(self) -> str:
        return self.put.__name__


class Register(list[Fault]):
    """The faults of a module, in order."""

    def noticed_by(self, check: Callable[[], None], *killers: str) -> Callable[[Put], Put]:
        """Decorator: the function below it puts in a fault that `check` notices.

        Args:
            check: of `tests.faults.checks`.
            killers: tests of the default run, as the functions below name them.
        """

        def add(put: Put) -> Put:
            self.append(Fault(put, check, killers))
            return put

        return add


# -- tests of the default run -------------------------------------------------------------------


def row(strategy: str, family: str) -> str:
    """The default row of a strategy on a family, under whatever schedule the rotation gives it."""
    return _row(strategy, family, once=False)


def once(strategy: str, family: str) -> str:
    """The same for the laws that no schedule changes."""
    return _row(strategy, family, once=True)


def evidence(family: str, attention: str = "sdpa") -> str:
    """What strategies are told on a family, against attention written out by hand."""
    test = "test_evidence_is_the_attention_of_the_weights"
    return f"tests/laws/test_scores.py::{test}[{family}-{attention}]"


def choice(strategy: str) -> str:
    """The laws of a strategy by itself."""
    return f"tests/laws/test_matrix.py::test_choices[{strategy}]"


def _row(strategy: str, family: str, once: bool) -> str:
    (found,) = (
        f"{name}-{case}"
        for name, case in _rows()
        if (name, case.family, case.once) == (strategy, family, once)
    )
    return f"tests/laws/test_matrix.py::test_laws[{found}]"


@cache
def _rows() -> list[matrix.Row]:
    return matrix.rows()
