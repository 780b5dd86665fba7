"""Names of strategies, schedulers, adapters and tasks, and the classes they stand for.

A registry is a read-only mapping from name to class. It says which names are close to a mistyped
one, which options a class takes, and which package owns a name that two register.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from tokenreduce.errors import BadOption, Incompatible
from tokenreduce.errors import UnknownName as UnknownName
from tokenreduce.errors import did_you_mean as did_you_mean
from tokenreduce.errors import short as short

T = TypeVar("T")


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
                self._fill()  # the names that ship are taken before any other registers
            taken = self._entries.get(name)
            if taken is not None and _owner(taken) != _owner(entry):
                raise BadOption(
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
            ValueError: an option of another kind than the class says, or one that it refuses.
        """
        entry: Any = self[name]
        known = list(inspect.signature(entry).parameters)
        kinds = _kinds(entry)
        for option, value in options.items():
            if option not in known:
                raise Incompatible(
                    f"{self.kind} {name!r} has no option {option!r}"
                    f"{did_you_mean(option, known)} (known: {', '.join(known) or 'none'})"
                )
            kind = kinds.get(option, Any)
            if not _fits(value, kind):
                raise BadOption(
                    f"{self.kind} {name!r}: {option} must be {_noun(kind)}, not {short(value)}"
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
        raise UnknownName(f"{entry!r} is not a registered {self.kind}")

    def parse(self, node: str | Mapping[str, Any], where: str = "") -> Any:
        """The instance that is written as a name, or as a mapping of `name` and options.

        Options are next to the name, as in an option file, or in a mapping of their own under
        `options`, as `to_dict` writes them. Lists are read as tuples. Messages say `where`.

        Raises:
            KeyError, TypeError: as `build`.
            ValueError: no name, something else altogether, or as `build`.
        """
        name, options = _read(node, where or self.kind)
        if name is None:
            raise BadOption(
                f"{where or self.kind} has no name: no {self.kind} is named (known names: "
                f"{', '.join(self)})"
            )
        return self.build(name, **options)

    def to_dict(self, entry: object, defaults: bool = True) -> dict[str, Any]:
        """`{"name": ..., "options": {...}}`, plain JSON data that `parse` makes an equal object of.

        An option that is itself of this registry is written as `node` writes it.

        Args:
            entry: an instance of a registered class.
            defaults: False leaves out options that are as the class has them.

        Raises:
            ValueError: a class that is not registered, an option that the instance does not keep
                in an attribute of its name, or one that JSON cannot hold.
        """
        if all(type(entry) is not known for known in self.values()):
            raise BadOption(_unregistered(entry, self.kind))
        name, options = self.name_of(entry), {}
        try:
            for option, parameter in inspect.signature(type(entry)).parameters.items():
                value = getattr(entry, option)
                if defaults or value != parameter.default:
                    options[option] = self.node(value) if type(value) in self.values() else value
            options = json.loads(json.dumps(options, allow_nan=False))
        except (AttributeError, TypeError, ValueError) as error:
            raise BadOption(
                f"the options of {self.kind} {name!r} cannot be saved ({error}): keep every "
                "option in an attribute of its name, as plain numbers, strings, lists or None"
            ) from error
        return {"name": name, "options": options}

    def node(self, entry: object, defaults: bool = True) -> dict[str, Any]:
        """As `to_dict`, with the options next to the name: how an option file has it."""
        written = self.to_dict(entry, defaults)
        return {"name": written["name"], **written["options"]}

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


def import_modules(package: str) -> None:
    """Import every module of an imported `package`, by name: what is in them is then registered.

    A new file in the folder of a registry's home is known without being listed anywhere.
    """
    folder = importlib.import_module(package).__path__
    for name in sorted(module.name for module in pkgutil.iter_modules(folder)):
        importlib.import_module(f"{package}.{name}")


def _read(node: Any, where: str) -> tuple[str | None, dict[str, Any]]:
    """The name, None where there is none, and the options that a node of data has."""
    if isinstance(node, str):
        return node, {}
    if not isinstance(node, Mapping):
        raise BadOption(
            f"{where} must be a name, or a mapping of name and options, not {short(node)}"
        )
    options = {str(key): value for key, value in node.items()}
    name = options.pop("name", None)
    if set(options) == {"options"} and isinstance(options["options"], Mapping):
        options = {str(key): value for key, value in options["options"].items()}
    listed = {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }
    return (name if isinstance(name, str) else None), listed


def _unregistered(entry: object, kind: str) -> str:
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    return (
        f"{_owner(type(entry))} is not a registered {kind}, so that nothing that is saved could "
        f"name it: register the class with @tokenreduce.{plural}.register(name)"
    )


def _owner(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"


def _kinds(entry: Any) -> dict[str, Any]:
    """The types that a class declares for its options; none where they cannot be told."""
    found: dict[str, Any] = {}
    for declared in (entry, getattr(entry, "__init__", None)):
        try:
            found |= typing.get_type_hints(declared)
        except (NameError, TypeError, AttributeError):  # names that only a type checker sees
            continue
    for option, parameter in inspect.signature(entry).parameters.items():
        if option not in found and isinstance(parameter.default, bool | float | str):
            found[option] = type(parameter.default)
    return found


def _fits(value: Any, kind: Any) -> bool:
    """Whether an option is of a kind: files and shells know no types. Classes check the rest."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:  # of words the class itself says which there are, and which is near
        word = isinstance(value, str)
        return any(type(value) is type(part) and (word or value == part) for part in parts)
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool) and _finite(value)
    if origin in (tuple, list, Sequence):
        rows = isinstance(value, list | tuple)
        return rows and all(_fits(row, parts[0]) for row in value if parts)
    plain = origin or kind
    return plain is Any or not isinstance(plain, type) or isinstance(value, plain)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


NOUNS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a word",
    Callable: "a function", Mapping: "a mapping",
}  # fmt: skip


def _noun(kind: Any) -> str:
    """What an option must be, in words: `a number or null`."""
    parts = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    found = dict.fromkeys(_word(part) for part in parts if part is not int or float not in parts)
    return " or ".join(found)


def _word(kind: Any) -> str:
    if kind is types.NoneType:
        return "null"
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if origin in (tuple, list, Sequence):
        return f"a list of {_noun(get_args(kind)[0]).split()[-1]}s" if get_args(kind) else "a list"
    plain: Any = origin or kind
    return NOUNS.get(plain, getattr(plain, "__name__", str(kind)))
