"""Every recorded case is either reproduced or named, with a reason, as deliberately different."""

from __future__ import annotations

import json

from . import test_fastv, test_pyramiddrop, test_vtw
from .cases import GOLDEN, METHODS, Case, cases, folders
from .deviations import DEVIATIONS, PARTIAL, deviates

RECORDED = sorted(GOLDEN.glob("*/*/case.json"))
TESTED = test_pyramiddrop.TESTED | test_fastv.TESTED | test_vtw.TESTED


def own() -> set[str]:
    return {str(Case(f)) for f in folders() if f.is_relative_to(GOLDEN)}


def test_every_case_is_reproduced_or_named_as_a_deviation() -> None:
    assert own() == (TESTED & own()) | DEVIATIONS.keys()
    assert not TESTED & DEVIATIONS.keys()
    assert PARTIAL.keys() <= TESTED


def test_the_table_of_deviations_is_what_the_rule_finds() -> None:
    found = {str(case) for method in METHODS for case in cases(method) if deviates(case)}
    assert found & own() == DEVIATIONS.keys()
    assert all(len(reason) > 80 for reason in (DEVIATIONS | PARTIAL).values())


def test_no_recorded_case_is_missing_from_the_copy() -> None:
    index = json.loads((GOLDEN / "index.json").read_text())
    named = {f"{entry['method']}/{entry['case']}" for entry in index}
    assert named == {f"{path.parent.parent.name}/{path.parent.name}" for path in RECORDED}
    assert {name for name in named if name.split("/")[0] in METHODS} == own()
    assert [len([x for x in index if x["method"] == m]) for m in METHODS] == [18, 15, 1]


def test_the_page_on_parity_names_every_case() -> None:
    page = (GOLDEN.parents[1] / "docs" / "parity.md").read_text()
    named = {f"{path.parent.parent.name}/{path.parent.name}" for path in RECORDED}
    assert not [name for name in named | own() if name not in page]
