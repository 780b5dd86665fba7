"""What goes wrong in ways that a caller may want to tell apart; the standard library alone.

Whatever a caller can mend is an instance of `Refused`, and also of the class of Python that says
what is the matter: `except ValueError` catches a `BadOption`. The command line tells a `Refused` in
one line and leaves everything else with its traceback (`is_refused` has the rule).
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from tokenreduce import plugins

AUTHORS = ("tokenreduce.strategies", "tokenreduce.engine")
"""Modules whose plain ValueError is an answer, as it is in plug-ins."""


class ReductionWarning(UserWarning):
    """A reduction that was asked for did not happen, or cannot have been meant so."""


class Refused(Exception):  # what it says is an answer, not a fault
    """What was asked for cannot be done: told in one line, without a traceback."""


class BadOption(Refused, ValueError):
    """A value, an option or a file that cannot be what it is given for."""


class Incompatible(Refused, TypeError):
    """Parts that do not go together: a strategy and a family, an object of another kind."""


class UnknownName(Refused, KeyError):
    """A name that no registry entry has. Prints as its message, without KeyError's quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


class Missing(Refused, FileNotFoundError):
    """A file that was asked for and is not there."""


class ContractError(BadOption):
    """A model, or its version of transformers, is not what the engine relies on.

    Raised by `reduce()` before anything runs, or at the end of a pass whose outcome shows it.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint `; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def short(value: Any) -> str:
    """How a value is written in a message: never a screen full of it."""
    try:
        said = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return said if len(said) < 80 else f"{said[:60]}..."


def is_refused(error: BaseException, also: Iterable[str] = ()) -> bool:
    """Whether `error` is an answer to what was asked, rather than a fault that needs a traceback.

    A `Refused` is one. Authors of methods need to know none of our classes: a plain ValueError is
    one as well where the innermost frame of its traceback is in the code of a strategy, of the
    engine or of a plug-in. The same class out of torch or numpy, a subclass such as a
    UnicodeDecodeError, and a slip such as `None + 1` or `{}["a"]`, wherever it is, are faults.

    also: further packages whose plain ValueError is an answer.
    """
    if isinstance(error, Refused):
        return True
    last = error.__traceback__
    if type(error) is not ValueError or last is None:
        return False
    while last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "")
    plugged = (loaded.__name__.partition(".")[0] for loaded in plugins.load())
    return any(f"{module}.".startswith(f"{home}.") for home in (*AUTHORS, *plugged, *also))


def in_one_line(error: BaseException) -> str:
    """The message of `error` without line breaks; of a KeyError without its quotes."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def warn_once(message: str) -> None:
    """Warns of a name that is deprecated, once in a process."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, DeprecationWarning, stacklevel=4)


def take_renamed(kind: type, names: Mapping[str, str]) -> None:
    """Takes the members that a class still defines under earlier names, and warns of each once.

    Args:
        kind: a class that was just defined.
        names: of members that its authors override: the earlier name -> the name of today.
    """
    for earlier in names.keys() & vars(kind).keys():
        warn_once(_renamed(earlier, names[earlier]))
        setattr(kind, names[earlier], vars(kind)[earlier])


def read_renamed(owner: Any, name: str, names: Mapping[str, str]) -> Any:
    """The attribute that `name` is called today, with one warning; for a `__getattr__`.

    Raises:
        AttributeError: `name` is not among the earlier names.
    """
    if name not in names:
        kind = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__name__
        raise AttributeError(f"{kind!r} has no attribute {name!r}")
    warn_once(_renamed(name, names[name]))
    return getattr(owner, names[name])


def read_moved(module: str, name: str, homes: Mapping[str, str]) -> Any:
    """What a module no longer has, from where it is today, with one warning; for a `__getattr__`.

    Args:
        module: that was asked.
        name: that it was asked for.
        homes: the dotted name of today, by the earlier name.

    Raises:
        AttributeError: `name` is not among the earlier names.
    """
    if name not in homes:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warn_once(f"{module}.{name} is {homes[name]} from version 0.2 on")
    home, _, now = homes[name].rpartition(".")
    return getattr(importlib.import_module(home), now)


def _renamed(earlier: str, now: str) -> str:
    return f"{earlier!r} is called {now!r} from version 0.2 on"


_said: set[str] = set()
