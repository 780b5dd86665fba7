"""What the package says of the releases that it supports is what was measured.

These tests are part of the default run, unlike the others of this folder.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tokenreduce.engine.contract import NEWEST, OLDEST
from tokenreduce.testing.models import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    """Minor -> what came out on its newest patch."""
    found = json.loads((ROOT / "docs" / "results" / "versions.json").read_text())["releases"]
    return {minor: row for minor, row in found.items() if not minor.endswith("-pre")}


def test_every_minor_of_the_range_was_measured(rows: dict[str, Any]) -> None:
    minors = [Version(row["transformers"]).release[:2] for row in rows.values()]
    assert minors[0] == OLDEST
    assert minors[-1] == NEWEST
    assert minors == [(OLDEST[0], minor) for minor in range(OLDEST[1], NEWEST[1] + 1)]


def test_the_package_asks_for_the_oldest_measured_minor(rows: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = map(Requirement, project["dependencies"])
    (wanted,) = (one.specifier for one in asked if one.name == "transformers")
    assert [one.version for one in wanted if one.operator == ">="] == [next(iter(rows))]
    assert all(Version(row["transformers"]) in wanted for row in rows.values())


def test_nothing_fails_on_either_end(rows: dict[str, Any]) -> None:
    for row in (rows[".".join(map(str, end))] for end in (OLDEST, NEWEST)):
        tried = {result for family in row["families"].values() for result in family.values()}
        assert {result.partition(":")[0] for result in tried} <= {"passed", "absent"}
        assert not row["recorded"]["failed"]
        assert row["main_job"] == "passed"


def test_the_newest_release_has_every_family(rows: dict[str, Any]) -> None:
    families = rows[".".join(map(str, NEWEST))]["families"]
    assert set(families) == set(FAMILIES)
    assert {result for family in families.values() for result in family.values()} == {"passed"}


def test_what_was_measured_is_a_commit(rows: dict[str, Any]) -> None:
    for row in rows.values():
        assert re.fullmatch(r"[0-9a-f]{9}", row["commit"]), row["commit"]
