"""Tables of what is registered: strategies, schedulers, families, evidence, laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from facts import need, options, paper, schedule, summary
from markdown import table

import tokenreduce as tr

ROOT = Path(__file__).resolve().parents[1]


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
                f"[`{name}`](methods/{name}.md)",
                ", ".join(map(need, sorted(kind().needs))) or "none",
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
    from tokenreduce.evidence import EVIDENCE

    return table(
        ("evidence", "shape and meaning", "adapters"),
        (
            (
                f"`{name}`",
                str(kind),
                _measuring(name),
            )
            for name, kind in EVIDENCE.items()
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
        missing = tr.adapters[FAMILIES[family].adapter]().missing_evidence(kind().needs, model)
        names, runs = tried[family]
        return f"no {need(min(missing))}" if missing else f"{len(names)} / {runs}"

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
}
