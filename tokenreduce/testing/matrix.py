"""Which strategy is tried on which family, schedule and attention kind.

The whole product (`product`) has thousands of cases, and next to nothing of what can go wrong
depends on all four at once. The default set is pairwise by construction, without a search: of the
schedules and attention kinds every pair of a strategy and a family gets one, in rotation,

    combos()[(place of the strategy + place of the family) % len(combos())]

so that every two of the four meet, and beyond pairs every strategy and every family meet every
schedule under every attention kind. Nothing is built here: models are made when a case is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from zlib import crc32

from tokenreduce.scheduler import Stop
from tokenreduce.strategy import Strategy
from tokenreduce.testing.case import OWN, Case
from tokenreduce.testing.models import FAMILIES, LAYERS, Family
from tokenreduce.testing.state_laws import STYLES
from tokenreduce.testing.trial import small

Row = tuple[str, Case]
"""The name of a registered strategy, and what it is tried on."""

ATTENTIONS = ("sdpa", "eager")
"""Attention implementations of transformers that every machine has."""
REFERENCE = ("pyramid_drop", "pooling")
"""The strategies that are tried on every family: one drops by evidence, the other merges."""
BEFORE = "explicit"
"""The schedule of variants: its first stop is at layer 0, where most can go wrong."""


def rows(full: bool = False) -> list[Row]:
    """What every registered strategy is tried on, each pair that is refused left out (`refusals`).

    Args:
        full: the whole product instead of the default set.
    """
    import tokenreduce

    found: list[Row] = []
    for name in tokenreduce.strategies:
        if full:
            chosen = product() + [case for family in main() for case in thorough(family)]
        else:
            chosen = pairwise(name) + once(name)
            if name in REFERENCE:
                chosen += variants(name) + [case for f in main() for case in once(name, f)]
        refused = {family.name for family in FAMILIES.values() if not serves(family, name)}
        found += [(name, case) for case in dict.fromkeys(chosen) if case.family not in refused]
    return found


def refusals() -> list[tuple[str, str]]:
    """Every strategy with the main families whose adapter cannot measure its evidence."""
    import tokenreduce

    return [
        (name, family.name)
        for name in tokenreduce.strategies
        for family in main()
        if not serves(family, name)
    ]


def pairwise(strategy: str = "") -> list[Case]:
    """A case for each main family; schedules and attention kinds by rotation.

    A family that lacks the attention kind whose turn it is takes the one that it has.
    """
    turns, first = combos(), place(strategy)
    found = []
    for j, family in enumerate(main()):
        scheduler, attention = turns[(first + j) % len(turns)]
        found.append(Case(family.name, scheduler, _attention(family, attention)))
    return found


def variants(strategy: str = "") -> list[Case]:
    """A case for each family that is not the main one of its adapter; attention alternates."""
    others = [family for family in FAMILIES.values() if not family.main]
    return [
        Case(family.name, BEFORE, _attention(family, ATTENTIONS[(place(strategy) + j) % 2]))
        for j, family in enumerate(others)
    ]


def once(strategy: str = "", family: Family | None = None) -> list[Case]:
    """The case for the laws that do not depend on the schedule: on `family`, or one in turn.

    The styles of activation checkpointing take turns, too.
    """
    able = [one for one in main() if serves(one, strategy)]
    if not able:  # a strategy that no family can serve
        return []
    chosen = able[place(strategy) % len(able)] if family is None else family
    turn = place(strategy) + [one.name for one in main()].index(chosen.name)
    attention, style = ATTENTIONS[turn % 2], list(STYLES)[turn % len(STYLES)]
    return [Case(chosen.name, OWN, _attention(chosen, attention), once=True, style=style)]


def thorough(family: Family) -> list[Case]:
    """The same laws under every attention kind that the family has, in every style."""
    return [Case(family.name, OWN, kind, once=True) for kind in _attentions(family, ATTENTIONS)]


def product(
    families: Iterable[str] | None = None,
    scheduled: Iterable[str] | None = None,
    attentions: Iterable[str] = ATTENTIONS,
) -> list[Case]:
    """Every main family under every schedule, its own and one from layer 0 on for the others.

    Args:
        families: names of `models.FAMILIES`; all of them.
        scheduled: names of schedulers, or `OWN`; what is said above.
        attentions: attention implementations of transformers.
    """
    every, few, kinds = [OWN, *distinct()], [OWN, BEFORE], tuple(attentions)
    asked = None if scheduled is None else list(scheduled)
    found = []
    for name in FAMILIES if families is None else families:
        chosen = asked if asked is not None else every if FAMILIES[name].main else few
        found += [
            Case(name, s, kind) for s in chosen for kind in _attentions(FAMILIES[name], kinds)
        ]
    return found


def combos() -> list[tuple[str, str]]:
    """Every schedule under every attention kind, in the order of the rotation."""
    return [(s, attention) for s in [OWN, *distinct()] for attention in ATTENTIONS]


def distinct() -> list[str]:
    """Names of the registered schedulers, one for each row of stops that they give at inference.

    A schedule that only training tells from another (an annealed one) is no case of its own.
    """
    import tokenreduce

    found: dict[tuple[Stop, ...], str] = {}
    for name in tokenreduce.schedulers:
        found.setdefault(small(name).stops(LAYERS), name)
    return list(found.values())


def main() -> list[Family]:
    """The main family of every adapter, in the order of the rotation.

    What measures least comes first. The rotation has fewer turns than there are families, so that
    the first ones are not alone with theirs: a strategy that they cannot serve misses no turn.
    """
    import tokenreduce

    found = [family for family in FAMILIES.values() if family.main]
    return sorted(found, key=lambda family: len(tokenreduce.adapters[family.adapter].evidence))


def place(strategy: str) -> int:
    """Where a strategy lies in the rotation.

    Those that ship follow each other in the order of the registry, first those that fewer families
    can serve. Any other, such as one of a plug-in, has the checksum of its name: the same cases on
    every machine, whatever else is installed.
    """
    known = shipped()
    return known.index(strategy) if strategy in known else crc32(strategy.encode())


def shipped() -> list[str]:
    """The strategies that ship, in the order of the rotation."""
    import tokenreduce

    found = [
        name
        for name, kind in tokenreduce.strategies.items()
        if kind.__module__.startswith("tokenreduce.")
    ]
    return sorted(found, key=lambda name: sum(serves(family, name) for family in main()))


def serves(family: Family, strategy: str) -> bool:
    """Whether the family's adapter can measure what the strategy reads; no model is built.

    A variant with another vision tower may still refuse it when it is there (`Case.check`); of a
    name that is not registered nothing is known.
    """
    import tokenreduce

    if strategy not in tokenreduce.strategies:
        return True
    needs = _needs(tokenreduce.strategies[strategy])
    return not tokenreduce.adapters[family.adapter].unmeasured(needs)


@cache
def _needs(kind: type[Strategy]) -> frozenset[str]:
    """What a strategy reads with its default options, on which it may depend."""
    return kind().needs


def _attention(family: Family, wanted: str) -> str:
    return wanted if wanted in family.attentions else family.attentions[0]


def _attentions(family: Family, wanted: Iterable[str]) -> list[str]:
    return [kind for kind in wanted if kind in family.attentions]
