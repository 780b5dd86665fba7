"""The page of every method: its facts from its class, its numbers from what is committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import leaderboard_tables
import option_files
import recordings
from facts import baseline, default, fields, need, option_docs, paper, schedule, shipped, summary
from markdown import table

import tokenreduce as tr
from tokenreduce.paper import Paper
from tokenreduce.tokens import EVIDENCE, kind_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"


def files() -> dict[Path, str]:
    """The page of every strategy that ships."""
    return {PAGES / f"{name}.md": page(name, kind) for name, kind in shipped().items()}


def stale() -> list[Path]:
    """Pages of what is not there any more."""
    made = files()
    return [path for path in sorted(PAGES.glob("*.md")) if path not in made]


def page(name: str, kind: type[tr.Strategy]) -> str:
    """All about one method."""
    source = f"{kind.__module__.replace('.', '/')}.py"
    parts = [
        f"# `{name}`",
        f"<!-- Written by scripts/generate.py from {source} -->",
        summary(kind),
        table(("", kind.__name__), facts(name, kind)),
        f"```console\ntokenreduce strategy={name}\n```",
    ]
    if fields(kind):
        parts += ["## Options", option_table(kind)]
    if board := leaderboard_tables.board(name):
        parts += [
            "## Leaderboard",
            "On the small model of the [leaderboard](../leaderboard.md):",
            board,
        ]
    parts += ["## Class", f"::: {kind.__module__}.{kind.__qualname__}"]
    if isinstance(kind.paper, Paper):
        parts += ["## Citation", cited(kind.paper)]
    return "\n\n".join(parts) + "\n"


def facts(name: str, kind: type[tr.Strategy]) -> list[tuple[str, str]]:
    """What is known of a method, one row each."""
    rows = [("what stays", kind.formula), ("cost of the choice", kind.cost)]
    if isinstance(kind.paper, Paper):
        title = f"{kind.paper.plain_title}, {kind.paper.short_venue}"
        rows.append(("paper", f"{title}, {paper(kind)}"))
        rows.append(("the authors' code", kind.paper.code or "none"))
    usual = schedule(kind)
    if option_files.schedules(kind):
        usual += f", on the command line `scheduler={option_files.preset(name, kind)}`"
    rows.append(("its schedule", usual))
    rows.append(("evidence", "<br>".join(map(meaning, sorted(kind().needs))) or "none"))
    rows += [
        ("reads the question", "yes" if kind().reads_text else "no"),
        ("acts in", kind.site),
        ("kept tokens take in others", "yes" if kind.mixes else "no"),
        ("positions", f"`{kind().positions}`"),
        ("parity", parity(name)),
    ]
    return rows


def meaning(name: str) -> str:
    """A kind of evidence, and what it is."""
    if name not in EVIDENCE and kind_of(name) in EVIDENCE:
        return f"{need(name)}: what `{kind_of(name)}` is, in that layer"
    return f"{need(name)}: {EVIDENCE[name]}" if name in EVIDENCE else need(name)


def parity(name: str) -> str:
    """What was recorded of the original."""
    number = recordings.recorded(name)
    if not number:
        return "nothing recorded"
    runs = "1 recorded run" if number == 1 else f"{number} recorded runs"
    return f"{runs} of the original, see [Parity](../parity.md)"


def option_table(kind: type[tr.Strategy]) -> str:
    """The options of a method, with their defaults."""
    said = option_docs(kind)
    return table(
        ("option", "default", "what it does"),
        (
            (f"`{field.name}`", f"`{default(field)}`", said.get(field.name, ""))
            for field in fields(kind)
        ),
    )


def cited(source: Paper) -> str:
    """The BibTeX entry of a paper, and what else a reader must know."""
    entry = f"```bibtex\n{source.bibtex()}\n```"
    return f"{entry}\n\n{source.note}" if source.note else entry


def citations() -> str:
    """Every method's paper, for the citation page."""
    return "\n\n".join(
        f"## `{name}`\n\n{cited(kind.paper)}"
        for name, kind in shipped().items()
        if isinstance(kind.paper, Paper)
    )


def listed(wanted: Callable[[type[tr.Strategy]], bool]) -> str:
    """Links to the pages of some strategies, with what each does."""
    return "\n".join(
        f"* [`{name}`](../methods/{name}.md): {summary(kind)}"
        for name, kind in shipped().items()
        if wanted(kind)
    )


def navigation() -> str:
    """The pages as `mkdocs.yml` lists them."""
    return "\n".join(f"- methods/{name}.md" for name in shipped())


def classes(kinds: list[type]) -> str:
    """Reference blocks, one for each class."""
    return "\n\n".join(f"::: {kind.__module__}.{kind.__qualname__}" for kind in kinds)


def rules(around: bool) -> str:
    """Reference blocks of the schedulers: those around another one, or the others."""
    return classes(
        [
            kind
            for kind in tr.schedulers.values()
            if any(isinstance(f.default, tr.Scheduler) for f in fields(kind)) == around
        ]
    )


def families() -> str:
    """Reference blocks of the adapters."""
    return classes(sorted(tr.adapters.values(), key=lambda kind: (kind.__module__, kind.__name__)))


TABLES: Mapping[str, Callable[[], str]] = {
    "citations": citations,
    "method-pages": navigation,
    "list-methods": lambda: listed(lambda kind: not baseline(kind)),
    "list-baselines": lambda: listed(baseline),
    "reference-schedulers": lambda: rules(around=False),
    "reference-training-schedulers": lambda: rules(around=True),
    "reference-adapters": families,
}
