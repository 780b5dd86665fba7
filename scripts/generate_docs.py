"""Writes the tables of strategies, schedulers and model families into the documentation.

    python scripts/generate_docs.py            # write them
    python scripts/generate_docs.py --check    # only say whether they are up to date

The registries are the source: what is registered is in the tables. A table stands between
`<!-- generated: NAME -->` and `<!-- end -->` in README.md and in the pages of docs/. The files of
the example plug-in are put into its page in the same way.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import leaderboard_tables
import study_tables
import version_tables
from markdown import table

import tokenreduce as tr

ROOT = Path(__file__).resolve().parents[1]
DEPTH = 32
"""Layers that a schedule of many stops is shown for."""
FEW = 6
"""Stops that a table writes out."""
BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Write every table, or with `--check` only compare; returns the exit code."""
    if set(arguments) - {"--check"}:
        print("usage: python scripts/generate_docs.py [--check]", file=sys.stderr)
        return 2
    stale = [path for path in pages() if render(path.read_text(), path) != path.read_text()]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python scripts/generate_docs.py")
        print(f"{len(pages())} pages checked, {len(stale)} out of date")
        return 1 if stale else 0
    for path in stale:
        path.write_text(render(path.read_text(), path))
        print(f"written: {path.relative_to(ROOT)}")
    return 0


def pages() -> list[Path]:
    """The files that may hold generated tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str, path: Path) -> str:
    """`text` with the content of every generated block made anew.

    Raises:
        KeyError: a block of an unknown name.
    """

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise KeyError(f"{path}: no table {name!r} (known: {', '.join(TABLES)})")
        return f"{found[1]}{TABLES[name]()}\n{found[3]}"

    return BLOCK.sub(fill, text)


def strategies() -> str:
    """The short table of the README."""
    return table(
        ("strategy", "what stays", "its scheduler", "paper"),
        (
            (f"`{name}`", summary(kind), schedule(kind), paper(kind))
            for name, kind in tr.strategies.items()
        ),
    )


def methods() -> str:
    """What a strategy reads, where it acts, and its paper."""
    return table(
        ("strategy", "evidence", "acts in", "reads the question", "positions", "paper"),
        (
            (
                link(kind, "reference/strategies.md", name),
                ", ".join(f"`{need}`" for need in sorted(kind().needs)) or "none",
                kind.site,
                "yes" if kind().reads_text else "no",
                f"`{kind().positions}`",
                paper(kind),
            )
            for name, kind in tr.strategies.items()
        ),
    )


def method_options() -> str:
    """The schedule that a strategy brings, and its options."""
    return table(
        ("strategy", "its scheduler", "options"),
        (
            (f"`{name}`", schedule(kind), options(kind).replace(", ", "<br>"))
            for name, kind in tr.strategies.items()
        ),
    )


def schedulers() -> str:
    """Name, effect and options of every scheduler."""
    return table(
        ("scheduler", "what it does", "options"),
        ((f"`{name}`", summary(kind), options(kind)) for name, kind in tr.schedulers.items()),
    )


def adapters() -> str:
    """Which models are read, and what can be measured on them."""
    return table(
        ("adapter", "models", "`config.model_type`", "positions"),
        (
            (
                f"`{name}`",
                summary(kind).rstrip("."),
                ", ".join(f"`{family}`" for family in sorted(kind.families)),
                ", ".join(f"`{rule}`" for rule in sorted(kind.positions, reverse=True)),
            )
            for name, kind in tr.adapters.items()
        ),
    )


def evidence() -> str:
    """What a strategy may name in `needs`, and which adapters can measure it."""
    from tokenreduce.tokens import EVIDENCE

    return table(
        ("evidence", "shape and meaning", "adapters"),
        (
            (
                f"`{name}`",
                meaning,
                _measuring(name),
            )
            for name, meaning in EVIDENCE.items()
        ),
    )


def _measuring(name: str) -> str:
    """The adapters that measure a kind of evidence, or all but those that do not."""
    able = [f"`{a}`" for a, kind in tr.adapters.items() if name in kind.evidence]
    others = [f"`{a}`" for a in tr.adapters if f"`{a}`" not in able]
    if len(others) >= len(able):
        return ", ".join(able)
    return f"all but {', '.join(others)}" if others else "all"


def conformance() -> str:
    """How many laws `--full` holds every method to on every family, or what is missing there."""
    from tokenreduce.testing.laws import cases
    from tokenreduce.testing.models import FAMILIES
    from tokenreduce.testing.trial import shared_model

    tried: dict[str, tuple[set[str], int]] = {}
    for case in cases(full=True):
        names, runs = tried.get(case.family, (set(), 0))
        names = names | {law.__name__ for law in case.laws()}
        tried[case.family] = (names, runs + len(case.laws()))

    def cell(family: str, kind: type[tr.Strategy]) -> str:
        model = shared_model(family, FAMILIES[family].attentions[0])
        missing = tr.adapters[FAMILIES[family].adapter]().lacks(kind().needs, model)
        names, runs = tried[family]
        return f"no `{min(missing)}`" if missing else f"{len(names)} / {runs}"

    return table(
        ("model", *(f"`{name}`" for name in tr.strategies)),
        (
            (f"`{family}`", *(cell(family, kind) for kind in tr.strategies.values()))
            for family in tried
        ),
    )


def default_set() -> str:
    """How many rows the default run has, and what each of them checks."""
    from tokenreduce.testing import matrix
    from tokenreduce.testing.laws import ALWAYS, ONCE

    rows, main = matrix.rows(), {family.name for family in matrix.main()}
    pairs = sum(case.family in main and not case.once for _, case in rows)
    variants = sum(case.family not in main for _, case in rows)
    whole = sum(case.once for _, case in rows)
    reference = " and ".join(f"`{name}`" for name in matrix.REFERENCE)
    return table(
        ("rows", "what meets", "laws", "runs"),
        (
            (
                "every method x every main family",
                "schedule and attention kind in rotation",
                f"{len(ALWAYS)} of every case",
                f"{pairs}",
            ),
            (
                f"{reference} x every other family",
                f"under `{matrix.BEFORE}`, attention kinds in turn",
                f"{len(ALWAYS)} of every case",
                f"{variants}",
            ),
            (
                f"every method x one main family in turn; {reference} x every one",
                "the method's own schedule, one style of checkpointing in turn",
                f"{len(ONCE)} that no schedule changes",
                f"{whole}",
            ),
            (
                "every method x every family that lacks its evidence",
                "no model runs",
                "refused by name",
                f"{len(matrix.refusals())}",
            ),
        ),
    )


def law_table() -> str:
    """Every law of the suite, with the first line of its docstring."""
    from tokenreduce.testing import choices, laws

    return table(
        ("law", "what it says", "tried"),
        (
            (f"`{law.__name__}`", summary(law).rstrip("."), when)
            for when, group in (
                ("every case", laws.ALWAYS),
                ("once, under the method's own schedule", laws.ONCE),
                ("made-up tokens", choices.LAWS),
            )
            for law in group
        ),
    )


def plugin(name: str, language: str) -> str:
    """A file of the example plug-in, as a code block."""
    text = (ROOT / "plugins" / "tokenreduce-norm" / name).read_text().strip()
    return f"```{language}\n{text}\n```"


TABLES: Mapping[str, Callable[[], str]] = {
    "strategies": strategies,
    "methods": methods,
    "method-options": method_options,
    "schedulers": schedulers,
    "adapters": adapters,
    "evidence": evidence,
    "conformance": conformance,
    "conformance-default": default_set,
    "laws": law_table,
    "plugin-strategy": lambda: plugin("tokenreduce_norm/__init__.py", "python"),
    "plugin-tests": lambda: plugin("tests/test_norm.py", "python"),
    "plugin-project": lambda: plugin("pyproject.toml", "toml"),
    "plugin-option": lambda: plugin("tokenreduce_norm/conf/strategy/norm.yaml", "yaml"),
    **study_tables.TABLES,
    **leaderboard_tables.TABLES,
    **version_tables.TABLES,
}


def summary(kind: Any) -> str:
    """The first sentence of a class's docstring, on one line."""
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
    return ", ".join(f"`{field.name}={field.default!r}`" for field in fields(kind)) or "none"


def fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a dataclass that a caller sets; none of any other class."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple(field for field in dataclasses.fields(kind) if field.init)


def paper(kind: type[tr.Strategy]) -> str:
    """A link to the paper, where a strategy names one."""
    number = kind.paper.removeprefix("arXiv ")
    if number == kind.paper:
        return kind.paper or "–"
    return f"[{kind.paper}](https://arxiv.org/abs/{number})"


def link(kind: type, page: str, name: str | None = None) -> str:
    """A class, under its own or another name, linked to its entry in the reference."""
    return f"[`{name or kind.__name__}`]({page}#{kind.__module__}.{kind.__qualname__})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
