"""What registered classes say of themselves, in words: the pieces of tables, pages and options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

import tokenreduce as tr
from tokenreduce.learning.strategy import LearnedStrategy
from tokenreduce.paper import Paper

DEPTH = 32
"""Layers that a schedule of many stops is shown for."""
FEW = 6
"""Stops that a table writes out."""


def shipped() -> dict[str, type[tr.Strategy]]:
    """The strategies of this package, without those of plug-ins that are installed."""
    own = tr.strategies.items()
    return {name: kind for name, kind in own if kind.__module__.startswith("tokenreduce.")}


def baseline(kind: type[tr.Strategy]) -> bool:
    """Whether a strategy is nobody's method: it has no paper, and learns nothing."""
    return not isinstance(kind.paper, Paper) and not issubclass(kind, LearnedStrategy)


def summary(kind: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", text)[0]


def schedule(kind: type[tr.Strategy]) -> str:
    """The scheduler that a strategy brings: as Python, in short where it has many stops."""
    scheduler = kind().scheduler()
    if not kind.reduces:
        return "none"
    name, given = type(scheduler).__name__, []
    for field in fields(scheduler):
        value = getattr(scheduler, field.name)
        if field.name in ("rounding", "at_least") and value == field.default:
            continue
        if isinstance(value, tuple) and len(value) > FEW:
            return f"`{name}` of {len(value)} stops: {many(scheduler)}"
        given.append(f"{field.name}={short(value)}")
    return f"`{name}({', '.join(given)})`"


def many(scheduler: tr.Scheduler) -> str:
    """A schedule of many stops: the first and the last of them."""
    first, *_, last = scheduler.stops(DEPTH)
    return (
        f"{first.keep:.0%} of the tokens from layer {first.layer} of {DEPTH}, "
        f"{last.keep:.0%} from layer {last.layer}"
    )


def short(value: Any) -> str:
    """A value as Python writes it, with four digits at most."""
    if isinstance(value, tuple):
        return f"({', '.join(map(short, value))}{',' if len(value) == 1 else ''})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def options(kind: type) -> str:
    """The options of a class with their defaults."""
    return ", ".join(f"`{field.name}={default(field)}`" for field in fields(kind)) or "none"


def default(field: dataclasses.Field[Any]) -> str:
    """The default of an option as Python writes it; four digits of a long number."""
    written = repr(field.default)
    long = isinstance(field.default, float) and len(written) > 8
    return short(field.default) if long else written


def fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a dataclass that a caller sets; none of any other class."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple(field for field in dataclasses.fields(kind) if field.init)


def option_docs(kind: type) -> dict[str, str]:
    """The first line of the docstring under every option, where it has one."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not owner.__module__.startswith("tokenreduce"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for attribute, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(attribute, ast.AnnAssign)
                and isinstance(attribute.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                first = inspect.cleandoc(str(text.value.value)).split("\n\n")[0]
                found[attribute.target.id] = " ".join(first.split())
    options = {field.name for field in fields(kind)}
    return {name: text for name, text in found.items() if name in options}


def need(name: str) -> str:
    """The name of a kind of evidence, as a table shows it: a layer with four digits at most."""
    kind, at, where = name.partition("@")
    layer = ast.literal_eval(where) if at else None
    if layer is None:
        return f"`{kind}`"
    place = f"{layer:.4g} of the depth" if isinstance(layer, float) else f"layer {layer}"
    return f"`{kind}` at {place}"


def paper(kind: type[tr.Strategy]) -> str:
    """A link to the paper, where a strategy names one."""
    if not isinstance(kind.paper, Paper):
        return kind.paper or "–"
    return f"[{kind.paper}]({kind.paper.link})" if kind.paper.link else str(kind.paper)
