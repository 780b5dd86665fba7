"""The script behind the table: which releases it runs, and what it makes of a report.

These tests are part of the default run; they install nothing.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<properties><property name="transformers" value="5.7.0"/></properties>
<testcase name="test_laws[a-fastv]"><properties><property name="family" value="a"/>
<property name="strategy" value="fastv"/></properties></testcase>
<testcase name="test_laws[a-pooling]"><properties><property name="family" value="a"/>
<property name="strategy" value="pooling"/></properties>
<failure message="AssertionError: a law&#10;and more">...</failure></testcase>
<testcase name="test_laws[b-fastv]"><properties><property name="family" value="b"/>
<property name="strategy" value="fastv"/></properties>
<skipped message="absent: transformers 5.7.0 has no BConfig"/></testcase>
<testcase name="test_generation[vtw]"><properties><property name="gap" value="2.16e-06"/>
</properties></testcase>
<testcase name="test_main_job_is_clean"><error message="stderr"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    at = ROOT / "scripts" / "check_versions.py"
    spec = importlib.util.spec_from_file_location("check_versions", at)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_report_becomes_a_row(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    row = script.read(tmp_path / "report.xml")
    assert row["ground"] == {"transformers": "5.7.0"}
    assert row["families"]["a"] == {
        "fastv": "passed",
        "pooling": "failed: AssertionError: a law",
    }
    assert row["families"]["b"] == {"fastv": "absent: transformers 5.7.0 has no BConfig"}
    assert row["recorded"] == {"passed": 1, "failed": {}, "gap": 2.2e-06}
    assert script.troubles(row) == [
        "a, pooling: failed: AssertionError: a law",
        "main job: failed: stderr",
    ]


def test_a_suite_that_tried_nothing_has_failed(script: ModuleType) -> None:
    row = {"families": {}, "recorded": {"failed": {}}, "main_job": "passed"}
    assert script.troubles(row) == ["no law was tried"]


def test_a_release_that_is_run_again_replaces_its_row(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "versions.json"
    for release in ("5.10.1", "5.7.0", "5.10.4", "5.25.0rc1"):
        script.write(path, "the command", {"transformers": release})
    rows = json.loads(path.read_text())["releases"]
    assert {minor: row["transformers"] for minor, row in rows.items()} == {
        "5.7": "5.7.0",
        "5.10": "5.10.4",
        "5.25-pre": "5.25.0rc1",
    }
    assert list(rows) == ["5.7", "5.10", "5.25-pre"]


def test_only_what_the_table_does_not_say_is_news(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    row = {"transformers": "5.7.0", **script.read(tmp_path / "report.xml")}
    path = tmp_path / "versions.json"
    assert script.news(row, path) == [
        "5.7.0: a, pooling: failed: AssertionError: a law",
        "5.7.0: main job: failed: stderr",
    ]
    script.write(path, "the command", {**row, "main_job": "passed"})
    assert script.news(row, path) == ["5.7.0: main job: failed: stderr"]


def test_a_minor_means_its_newest_patch(script: ModuleType) -> None:
    known = [Version(text) for text in ("5.10.1", "5.9.0", "5.10.4")]
    finals = script.newest_patches(known)
    assert list(finals) == ["5.9", "5.10"]
    assert script.named("5.10", finals, known) == Version("5.10.4")
    assert script.named("5.10.1", finals, known) == Version("5.10.1")
    with pytest.raises(SystemExit, match=r"no transformers 5\.11 on the index \(newest: 5\.10\)"):
        script.named("5.11", finals, known)
