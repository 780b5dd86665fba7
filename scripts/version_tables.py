"""Tables of what holds on which release of transformers, from docs/results/versions.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from check_versions import RESULTS, skipped, troubles
from markdown import table

Row = dict[str, Any]


@cache
def rows(path: Path = RESULTS) -> dict[str, Row]:
    """Minor -> what came out on its newest patch, ascending."""
    found: dict[str, Row] = json.loads(path.read_text())["releases"]
    return found


def short() -> str:
    """The range of releases in one row, for the README."""
    found = list(rows().items())
    gaps = [row["recorded"]["gap"] for _, row in found if row["recorded"]["gap"] is not None]
    results = [result for _, row in found for result in cells(row)]
    return table(
        ("`transformers`", "tiny models", "laws hold", "recorded logits", "main job"),
        [
            (
                f"{found[0][0]} to {found[-1][0]} ({len(found)} minors)",
                str(len({family for _, row in found for family in row["families"]})),
                held(results),
                f"within {max(gaps):.0e}" if gaps else "–",
                f"clean on {sum(row['main_job'] == 'passed' for _, row in found)}",
            )
        ],
    )


def releases() -> str:
    """A row for each minor: what was run with it, and what held."""
    return table(
        ("minor", "release", "run with", "laws", "recordings", "largest difference", "main job"),
        (
            (
                minor,
                row["transformers"],
                ", ".join(beside(row)) or "–",
                held(cells(row)),
                f"{row['recorded']['passed']} / {recordings(row)}",
                "–" if row["recorded"]["gap"] is None else f"{row['recorded']['gap']:.1e}",
                "clean" if row["main_job"] == "passed" else "fails",
            )
            for minor, row in rows().items()
        ),
    )


def families() -> str:
    """Families by minors: on how many strategies the laws hold, or that there is no such model."""
    names = dict.fromkeys(name for row in rows().values() for name in row["families"])
    return table(
        ("family", *rows()),
        ((f"`{name}`", *(cell(row, name) for row in rows().values())) for name in names),
    )


def failures() -> str:
    """What does not hold: failures, families that a release lacks, models that it cannot run."""
    found: dict[str, list[str]] = {}
    for minor, row in rows().items():
        without = [
            f"{family}: {result}"
            for family, results in row["families"].items()
            for result in dict.fromkeys(results.values())
            if skipped(result)
        ]
        for what in [*troubles(row), *without]:
            found.setdefault(what, []).append(minor)
    if not found:
        return "Nothing."
    return table(("what", "on"), ((what, span(minors)) for what, minors in found.items()))


def span(minors: list[str]) -> str:
    """Minors, as a range where there is none between that is not among them."""
    every = list(rows())
    first, last = every.index(minors[0]), every.index(minors[-1])
    if len(minors) < 3 or last - first + 1 != len(minors):
        return ", ".join(minors)
    return f"{minors[0]} to {minors[-1]}"


def conditions() -> str:
    """What was run, where and when."""
    grounds = {
        f"Python {row['ground']['python']}, torch {row['ground']['torch']}, "
        f"{row['ground']['platform']}, commit {row['commit']}, {row['date']}"
        for row in rows().values()
    }
    seconds = [row["seconds"] for row in rows().values()]
    return (
        f"{'; '.join(sorted(grounds))}. A release took {min(seconds)} to {max(seconds)} s by the "
        "clock, on one thread, next to other work on the machine. Command: "
        "`python scripts/check_versions.py`."
    )


def cells(row: Row) -> list[str]:
    """The outcomes of a release's laws, over families and strategies."""
    return [result for family in row["families"].values() for result in family.values()]


def held(results: list[str]) -> str:
    """In how many cases the laws hold, and in how many there is nothing to reduce."""
    without = sum(map(skipped, results))
    more = f", {without} cannot run" if without else ""
    return f"{results.count('passed')} / {len(results)}{more}"


def cell(row: Row, family: str) -> str:
    """Whether the laws hold on a family: yes, or for how many strategies, or why none is tried."""
    results = list(row["families"].get(family, {}).values())
    kinds = {result.partition(":")[0] for result in results}
    if len(kinds) == 1:
        return {"passed": "yes", "absent": "absent", "unable": "unable"}.get(kinds.pop(), "no")
    return f"{results.count('passed')} / {len(results)}"


def recordings(row: Row) -> int:
    """How many recorded generations were tried."""
    return int(row["recorded"]["passed"]) + len(row["recorded"]["failed"])


def beside(row: Row) -> list[str]:
    """The packages that a release wants in other versions than the newest has."""
    known = ("huggingface_hub", "huggingface-hub", "tokenizers", "safetensors")
    return [f"{name} {number}" for name, number in row["with"].items() if name in known]


TABLES: dict[str, Callable[[], str]] = {
    "versions": short,
    "version-releases": releases,
    "version-families": families,
    "version-failures": failures,
    "version-conditions": conditions,
}
