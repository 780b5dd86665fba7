"""`tokenreduce list`, `doctor` and `--version`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tokenreduce as tr
from tokenreduce.config import known, option_files
from tokenreduce.engine.contract import NEWEST, OLDEST
from tokenreduce.errors import Refused
from tokenreduce.program import doctor, listing


def test_the_list_has_everything_and_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    names = {line.split()[0] for line in out.splitlines() if line[1:2].strip()}
    assert {name for group, name, _ in option_files() if group in listing.KINDS} <= names
    assert set(known("adapter")) <= names
    assert "…" not in out
    assert "qwen2_5_vl" in out


def test_one_kind_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show(["schedulers"])
    out = capsys.readouterr().out
    assert "pyramid" in out
    assert "scorer_mlp" not in out
    with pytest.raises(Refused, match=r"'schedulerz'; did you mean 'schedulers'\?"):
        listing.show(["schedulerz"])


def test_what_an_option_file_says_first(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    rows = ["# Keeps what is", "# seen (a. b). More.", "# And this is too much.", "name: a"]
    path.write_text("\n".join(rows))
    assert listing.comment(path) == "Keeps what is seen (a. b). More."


def test_the_version_names_what_decides_the_numbers() -> None:
    line = listing.version()
    assert line.startswith(f"tokenreduce {tr.__version__} (")
    for name in ("python", "torch", "transformers"):
        assert re.search(rf"{name} \d", line)


def test_the_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for text in ("transformers", "within 5.", "device=auto", "cpu", "train", "llava", "embedded"):
        assert text in out


@pytest.mark.parametrize(
    ("number", "within"),
    [
        (f"{NEWEST[0]}.{NEWEST[1]}.3", True),
        (f"{OLDEST[0]}.{OLDEST[1]}.0", True),
        (f"{NEWEST[0]}.{NEWEST[1] + 1}.0", False),
        ("4.57.1", False),
        ("6.0.0.dev0", False),
    ],
)
def test_the_doctor_knows_which_transformers_were_measured(number: str, within: bool) -> None:
    assert doctor.measured(number).startswith("within" if within else "!")
