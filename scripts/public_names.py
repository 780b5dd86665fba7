"""The public names of the package: where each of them is defined.

By hand they stand once, as the imports under TYPE_CHECKING in `tokenreduce/__init__.py`; those of
what is registered come from the registries.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path

import tokenreduce as tr

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "tokenreduce" / "__init__.py"
FILES = (FILE, ROOT / "tokenreduce" / "schedulers" / "__init__.py")
"""Every file that has some of the names."""


def homes_of(*registries: Mapping[str, type]) -> dict[str, str]:
    """Class name -> module of what ships of some registries."""
    kinds = [kind for registry in registries for kind in registry.values()]
    own = [kind for kind in kinds if kind.__module__.startswith("tokenreduce.")]
    return {kind.__name__: kind.__module__ for kind in sorted(own, key=lambda k: k.__module__)}


def registered() -> dict[str, str]:
    """Class name -> module of every strategy and scheduler that ships."""
    return homes_of(tr.schedulers, tr.strategies)


def by_hand() -> dict[str, str]:
    """Name -> module of the others."""
    found: dict[str, str] = {}
    for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module != "tokenreduce":
                    found |= {alias.name: str(line.module) for alias in line.names}
    places = ("tokenreduce.strategies.", "tokenreduce.schedulers.")
    return {name: module for name, module in found.items() if not module.startswith(places)}


def imports(found: Mapping[str, str]) -> str:
    """Classes for type checkers, documentation and editors."""
    rows = [f"    from {module} import {name}" for name, module in found.items()]
    return "\n".join(["if TYPE_CHECKING:", *rows])


def homes() -> str:
    """The module of every public name, for the import when it is first used."""
    found = sorted({**by_hand(), **registered()}.items())
    rows = [f'    "{name}": "{module.removeprefix("tokenreduce.")}",' for name, module in found]
    return "\n".join(["_HOME = {", *rows, "}"])


TABLES: Mapping[str, Callable[[], str]] = {
    "registered-classes": lambda: imports(registered()),
    "scheduler-classes": lambda: imports(homes_of(tr.schedulers)),
    "homes": homes,
}
