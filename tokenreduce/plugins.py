"""Finds installed plug-ins: packages with an entry point in the group `tokenreduce.plugins`.

A plug-in is an importable module that registers strategies, schedulers, adapters, tasks or kinds of
data when it is imported. A folder `conf/` inside its package adds options to the command line.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

GROUP = "tokenreduce.plugins"
SHIPPED_APART = {
    ("strategy", "norm"): "tokenreduce-norm",
    ("task", "pretrain"): "tokenreduce-tiny",
    ("data", "lessons"): "tokenreduce-tiny",
}
"""By group and name, the options of the packages in the repository's folder `plugins/`."""


class PluginWarning(UserWarning):
    """A plug-in could not be imported; everything else goes on without it."""


@cache
def load() -> tuple[ModuleType, ...]:
    """Import every installed plug-in once; returns the modules that could be imported.

    A plug-in that fails takes no other with it: it is skipped, and a `PluginWarning` names it, the
    package it came with and the reason.
    """
    loaded = []
    for point in _points():
        try:
            loaded.append(point.load())
        except (Exception, SystemExit) as error:
            warnings.warn(
                f"plug-in {point.name!r} ({_origin(point)}) is left out, because importing "
                f"{point.value!r} failed: {type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=2,
            )
    return tuple(loaded)


def config_folders() -> Iterator[tuple[str, Path]]:
    """Name and `conf/` folder of every plug-in that has one; imports none of them."""
    for point in _points():
        package = point.module.partition(".")[0]
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue  # load() says so, when it matters
        for place in (spec and spec.submodule_search_locations) or ():
            if (Path(place) / "conf" / "__init__.py").is_file():
                yield point.name, Path(place) / "conf"


def not_installed(group: str, name: str) -> str | None:
    """Where an option is that a package of `plugins/` would bring; None for any other name."""
    package = SHIPPED_APART.get((group, name))
    return package and (
        f"{group}={name} comes with the plug-in {package}, which is not installed: run "
        f'"pip install ./plugins/{package}" in a checkout of tokenreduce'
    )


def _points() -> list[EntryPoint]:
    """The entry points in an order that does not depend on the order of installation."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "of unknown origin"
