"""Names of strategies, schedulers, adapters and tasks, and the classes they stand for.

A registry is a read-only mapping from name to class. It says which names are close to a mistyped
one, which options a class takes, and who owns a name that is asked for twice.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint `; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from name to registered class (or function), in order of registration.

    Args:
        kind: the noun used in messages, e.g. `"strategy"`.
        home: the package whose import registers the entries that ship; imported at the first
            look, so that a registry is full whichever module it was reached through.
    """

    def __init__(self, kind: str, home: str | None = None) -> None:
        self.kind = kind
        self._home = home
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: makes the class (or function) below it known as `name`.

        Raises:
            ValueError: another object already has that name; both owners are named.
        """

        def add(entry: T) -> T:
            module = str(getattr(entry, "__module__", ""))
            if self._home is not None and not module.startswith(self._home):
                self._fill()  # the names that ship are taken before anybody else comes
            taken = self._entries.get(name)
            if taken is not None and _owner(taken) != _owner(entry):
                raise ValueError(
                    f"the {self.kind} name {name!r} is taken by {_owner(taken)}; "
                    f"{_owner(entry)} must choose another"
                )
            self._entries[name] = entry
            return entry

        return add

    def build(self, name: str, /, **options: Any) -> Any:
        """An instance of the class called `name`, made with `options`.

        Raises:
            KeyError: no such name; the closest one is suggested.
            TypeError: the class has no such option; the closest one is suggested.
        """
        entry: Any = self[name]
        known = list(inspect.signature(entry).parameters)
        for option in options:
            if option not in known:
                raise TypeError(
                    f"{self.kind} {name!r} has no option {option!r}"
                    f"{did_you_mean(option, known)} (known: {', '.join(known) or 'none'})"
                )
        return entry(**options)

    def name_of(self, entry: object) -> str:
        """The name under which a class, or the class of an instance, is registered.

        Raises:
            KeyError: it is not registered.
        """
        for name, known in self.items():
            if entry is known or type(entry) is known:
                return name
        raise KeyError(f"{entry!r} is not a registered {self.kind}")

    def _fill(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            importlib.import_module(home)

    def __getitem__(self, name: str) -> T:
        self._fill()
        try:
            return self._entries[name]
        except KeyError:
            hint = did_you_mean(name, self)
            known = ", ".join(self) or "none"
            raise UnknownName(f"no {self.kind} {name!r}{hint} (known: {known})") from None

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(self._entries)

    def __len__(self) -> int:
        self._fill()
        return len(self._entries)

    def __repr__(self) -> str:
        rows = [f"  {name:<16} {_owner(entry)}" for name, entry in self.items()]
        return "\n".join([f"{len(self)} registered {self.kind} names:", *rows])


class UnknownName(KeyError):
    """A name that no registry entry has. Prints as its message, without KeyError's quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


def _owner(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
