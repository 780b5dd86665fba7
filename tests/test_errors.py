"""Refusals: classes that say what is the matter, to Python and to the command line alike."""

from __future__ import annotations

import ast
import builtins
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tokenreduce as tr
from tokenreduce import errors, registry
from tokenreduce.errors import (
    BadOption,
    Incompatible,
    Missing,
    Refused,
    UnknownName,
    in_one_line,
    is_refused,
)

PACKAGE = Path(errors.__file__).parent
AUTHORS = {home.rpartition(".")[2] for home in errors.AUTHORS}
PLAIN = ("ValueError", "TypeError", "KeyError", "FileNotFoundError", "ImportError")


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (BadOption, ValueError),
        (Incompatible, TypeError),
        (UnknownName, KeyError),
        (Missing, FileNotFoundError),
        (tr.ContractError, ValueError),
    ],
)
def test_a_refusal_is_an_error_of_python_as_well(
    kind: type[Refused], plain: type[Exception]
) -> None:
    error = kind("no strategy 'x'")
    assert isinstance(error, Refused)
    assert isinstance(error, plain)
    assert str(error) == "no strategy 'x'"  # a KeyError's quotes are gone


def test_a_refusal_comes_back_from_another_process() -> None:
    for kind in (Refused, BadOption, Incompatible, UnknownName, Missing):
        back = pickle.loads(pickle.dumps(kind("why")))
        assert type(back) is kind
        assert str(back) == "why"


def test_names_stay_where_they_were() -> None:
    assert registry.UnknownName is UnknownName is tr.UnknownName
    assert registry.did_you_mean is errors.did_you_mean
    assert issubclass(tr.ReductionWarning, UserWarning)


def raised(code: str, module: str) -> Exception:
    """The error that a line of code in a module of that name raises."""
    names = {"__name__": module, "np": np, "BadOption": BadOption}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        exec(compile(code, f"{module}.py", "exec"), names)
    return caught.value


@pytest.mark.parametrize(
    ("module", "code", "refused"),
    [
        ("tokenreduce.data.rows", "raise BadOption('no')", True),
        ("elsewhere", "raise BadOption('no')", True),
        ("tokenreduce.strategies.mine", "raise ValueError('no')", True),
        ("tokenreduce.engine.passes", "raise ValueError('no')", True),
        ("plug_mine", "raise ValueError('no')", True),
        ("plug_mine.plan", "raise ValueError('no')", True),
        ("plug_minerals", "raise ValueError('no')", False),
        ("tokenreduce.data.rows", "raise ValueError('no')", False),
        ("tokenreduce.slip", "int('x')", False),
        ("elsewhere", "raise ValueError('no')", False),
        ("plug_mine", "None + 1", False),
        ("plug_mine", "{}['a']", False),
        ("plug_mine", "b'\\xff'.decode()", False),
        ("plug_mine", "np.stack([])", False),
        ("tokenreduce.strategies.mine", "None + 1", False),
        ("tokenreduce.strategies.mine", "{}['a']", False),
    ],
)
def test_an_answer_is_told_from_a_fault(
    module: str, code: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors.plugins, "load", lambda: (ModuleType("plug_mine"),))
    assert is_refused(raised(code, module)) is refused


def test_other_packages_can_answer_too() -> None:
    error = raised("raise ValueError('no')", "hydra.core")
    assert not is_refused(error)
    assert is_refused(error, also=("hydra",))


def test_a_message_is_one_line() -> None:
    assert in_one_line(KeyError("no\n  such")) == "no such"
    assert in_one_line(BadOption("a\nb")) == "a b"


def plain_raises(source: str) -> list[str]:
    """The raise statements of a source that name a class of Python which a refusal has of its own.

    Such an error would keep its traceback on the command line.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        name = getattr(node.exc.func, "id", "")
        if name in PLAIN and hasattr(builtins, name):
            found.append(f"line {node.lineno}: {name}")
    return found


def test_what_the_package_refuses_is_a_refusal() -> None:
    found = [
        f"{path.relative_to(PACKAGE)} {line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in AUTHORS
        for line in plain_raises(path.read_text())
    ]
    assert found == []
    assert plain_raises("def f():\n    raise ValueError('no')\n") == ["line 2: ValueError"]
    assert plain_raises("raise BadOption('no')") == []
