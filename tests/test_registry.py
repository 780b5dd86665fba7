"""Names: one owner each, close ones suggested, options checked."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import tokenreduce as tr
from tokenreduce.registry import Registry, UnknownName, did_you_mean


@dataclass
class First:
    """Owner of a name."""

    keep: float = 0.5
    layer: int = 2


@dataclass
class Second:
    """Would like to have it."""


@pytest.fixture
def registry() -> Registry[type]:
    made: Registry[type] = Registry("scorer")
    made.register("first")(First)
    made.register("second")(Second)
    return made


def test_a_name_has_one_owner(registry: Registry[type]) -> None:
    with pytest.raises(ValueError, match="scorer name 'first' is taken") as refusal:
        registry.register("first")(Second)
    assert f"{__name__}.First" in str(refusal.value)
    assert f"{__name__}.Second" in str(refusal.value)
    assert registry["first"] is First


def test_names_that_ship_are_protected() -> None:
    with pytest.raises(ValueError, match=r"tokenreduce\.strategies\.fastv\.FastV"):
        tr.strategies.register("fastv")(Second)  # type: ignore[arg-type]
    assert tr.strategies["fastv"] is tr.FastV


def test_the_same_class_may_be_registered_again(registry: Registry[type]) -> None:
    """A module that is imported twice, as notebooks do, replaces its own class."""
    again = type("First", (), {"__module__": __name__, "__qualname__": "First"})
    registry.register("first")(again)
    assert registry["first"] is again


def test_an_unknown_name_suggests_the_closest(registry: Registry[type]) -> None:
    with pytest.raises(UnknownName) as refusal:
        registry["frist"]
    assert str(refusal.value) == "no scorer 'frist'; did you mean 'first'? (known: first, second)"
    assert isinstance(refusal.value, KeyError)


def test_a_far_name_gets_no_suggestion(registry: Registry[type]) -> None:
    with pytest.raises(UnknownName) as refusal:
        registry["pyramid"]
    assert str(refusal.value) == "no scorer 'pyramid' (known: first, second)"


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownName, match=r"\(known: none\)"):
        Registry[type]("scorer")["first"]


def test_a_misspelt_option_suggests_the_closest(registry: Registry[type]) -> None:
    with pytest.raises(TypeError) as refusal:
        registry.build("first", kep=0.3)
    assert str(refusal.value) == (
        "scorer 'first' has no option 'kep'; did you mean 'keep'? (known: keep, layer)"
    )


def test_an_option_of_a_class_without_any(registry: Registry[type]) -> None:
    with pytest.raises(TypeError, match=r"scorer 'second' has no option 'keep' \(known: none\)"):
        registry.build("second", keep=0.3)


def test_options_arrive(registry: Registry[type]) -> None:
    assert registry.build("first", keep=0.25) == First(keep=0.25)


def test_a_registry_is_a_mapping(registry: Registry[type]) -> None:
    assert list(registry) == ["first", "second"]
    assert len(registry) == 2
    assert "first" in registry
    assert "third" not in registry
    assert dict(registry.items()) == {"first": First, "second": Second}
    with pytest.raises(TypeError):
        registry["third"] = First  # type: ignore[index]


def test_it_prints_names_and_owners(registry: Registry[type]) -> None:
    assert repr(registry).splitlines()[0] == "2 registered scorer names:"
    assert f"{__name__}.First" in repr(registry)


def test_a_class_and_its_instances_know_their_name(registry: Registry[type]) -> None:
    assert registry.name_of(First) == registry.name_of(First()) == "first"
    with pytest.raises(KeyError, match="is not a registered scorer"):
        registry.name_of(3)


def test_did_you_mean() -> None:
    assert (
        did_you_mean("pyramid-drop", ["fastv", "pyramid_drop"]) == "; did you mean 'pyramid_drop'?"
    )
    assert did_you_mean("zzz", ["fastv"]) == ""


@pytest.mark.slow
def test_what_ships_is_known_without_further_imports() -> None:
    """In a fresh process, whichever registry is looked at first."""
    code = "import tokenreduce as tr; print(*tr.{}, sep=',')"
    expected = {
        "strategies": {"fastv", "none", "pooling", "pyramid_drop", "random", "stride", "vtw"},
        "schedulers": {"cosine", "explicit", "linear", "pyramid", "single"},
        "adapters": {"decoder", "llava", "llava_next"},
    }
    for name, least in expected.items():
        command = [sys.executable, "-c", code.format(name)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert least <= set(run.stdout.strip().split(","))


@pytest.mark.parametrize("registry", [tr.strategies, tr.schedulers], ids=["strategy", "scheduler"])
def test_every_registered_class_can_be_made_and_printed(registry: Registry[type]) -> None:
    assert len(registry) >= 5
    for name, kind in registry.items():
        made = registry.build(name)
        assert type(made) is kind
        assert kind.__name__ in repr(made)
        assert (kind.__doc__ or "").strip()


REGISTRIES = {"strategy": tr.strategies, "scheduler": tr.schedulers}
OPTIONS = sorted(
    (kind, name, option)
    for kind, registry in REGISTRIES.items()
    for name, entry in registry.items()
    for option in inspect.signature(entry).parameters
)


def test_no_option_takes_what_its_class_does_not_mean() -> None:
    """NaN, infinity, a list in a list, a number beyond all floats; and words, but for words."""
    wrong = [float("nan"), float("inf"), 10**400, [[None]], object()]
    for kind, name, option in OPTIONS:
        for value in wrong:
            with pytest.raises((ValueError, TypeError)) as refusal:
                REGISTRIES[kind].build(name, **{option: value})
            said = str(refusal.value)
            assert option in said, (name, option, said)
            assert len(said) < 300
            assert "\n" not in said
        default = inspect.signature(REGISTRIES[kind][name]).parameters[option].default
        if option != "weights":  # a path: any word may be one, and there is no such file
            with pytest.raises((ValueError, KeyError)):
                REGISTRIES[kind].build(name, **{option: "nonsense"})
        if isinstance(default, bool | float):
            for value in (None, "0.5", [0.5]):
                with pytest.raises(ValueError, match=f"'{name}': {option} must be"):
                    REGISTRIES[kind].build(name, **{option: value})


@dataclass
class Declared:
    """Options of every kind that a file can hold."""

    number: float = 0.5
    count: int | None = None
    place: int | float = 2
    rows: tuple[int | float, ...] = (1,)
    mode: Literal["a", "b"] = "a"
    score: Callable[[int], int] | None = None
    hidden: Unseen = None  # noqa: F821  # as names that only a type checker imports


class Plain:
    """No dataclass; its options are declared where they are taken."""

    def __init__(self, keep: float, names: list[str] | None = None, odd=None) -> None:
        self.keep, self.names, self.odd = keep, names, odd


def test_kinds_of_options_are_those_that_a_class_declares() -> None:
    registry: Registry[type] = Registry("thing")
    registry.register("plain")(Plain)
    assert registry.build("plain", keep=1, names=("a",), odd=object()).keep == 1
    with pytest.raises(ValueError, match=r"'plain': keep must be a number, not '1'"):
        registry.build("plain", keep="1")
    with pytest.raises(ValueError, match=r"names must be a list of words or null, not \[1\]"):
        registry.build("plain", keep=1, names=[1])
    registry.register("declared")(Declared)  # one name of it is unknown: defaults tell the rest
    with pytest.raises(ValueError, match="number must be a number, not nan"):
        registry.build("declared", number=float("nan"))


@dataclass
class Listed:
    """A class that takes its options as they come."""

    rows: Any = ()
    inner: Any = None


def test_what_is_written_is_read_as_it_was() -> None:
    registry: Registry[type] = Registry("list")
    registry.register("listed")(Listed)
    one = Listed((1, 2), Listed((3,)))
    written = registry.to_dict(one)
    inner = {"name": "listed", "rows": [3], "inner": None}
    assert written == {"name": "listed", "options": {"rows": [1, 2], "inner": inner}}
    assert registry.node(one, defaults=False)["rows"] == [1, 2]
    assert registry.node(Listed(), defaults=False) == {"name": "listed"}
    for node in (registry.to_dict(Listed((1, 2))), registry.node(Listed((1, 2)))):
        assert registry.parse(node) == Listed((1, 2))  # a list is read as a tuple
    assert registry.parse("listed") == Listed()


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"rows": [1]}, "^here has no name: no list is named .known names: listed"),
        ({"name": 3}, "^here has no name"),
        (3, "^here must be a name, or a mapping of name and options, not 3"),
    ],
)
def test_what_names_nothing_is_refused(node: Any, said: str) -> None:
    registry: Registry[type] = Registry("list")
    registry.register("listed")(Listed)
    with pytest.raises(ValueError, match=said):
        registry.parse(node, "here")
