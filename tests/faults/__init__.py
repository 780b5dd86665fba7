"""Deliberate faults: each is switched on by hand, and a law must notice.

A law that passes with a fault in place is worth nothing. Every fault names the check that has to
fail, and how the fault is put in; without it the same check passes. It also names the smallest part
of the default run that notices it: a set of tests that is no product is only worth running while
it finds what the product would.
"""

from __future__ import annotations

from tests.faults import choices, engine, families, geometry, scores
from tests.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (
    *scores.FAULTS,
    *choices.FAULTS,
    *engine.FAULTS,
    *families.FAULTS,
    *geometry.FAULTS,
)
"""Every fault."""
