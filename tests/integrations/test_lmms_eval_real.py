"""lmms-eval itself, where it is installed: full and reduced, asked the same, word for word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason='needs lmms-eval: pip install -e ".[lmms-eval]"')
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "docs" / "studies" / "lmms_eval"
IDS = """
import hashlib, runpy, sys
from transformers import LlavaForConditionalGeneration as Model

plain = Model.generate

def generate(self, input_ids, **options):
    print("ids", hashlib.sha256(input_ids.numpy().tobytes()).hexdigest(), file=sys.stderr)
    return plain(self, input_ids=input_ids, **options)

Model.generate = generate
sys.argv = ["lmms_eval", *sys.argv[1:]]
runpy.run_module("lmms_eval", run_name="__main__")
"""


def ran(code: list[str], folder: Path) -> str:
    """What a Python program wrote to its errors, in a process without a network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    run = subprocess.run(
        [sys.executable, *code],
        cwd=folder,
        env={**os.environ, **offline, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which the study has been run on four questions, and what it found."""
    folder = tmp_path_factory.mktemp("study")
    ran([str(STUDY / "run.py"), "--images=2", "--questions=2", "--output=found.json"], folder)
    return folder, json.loads((folder / "found.json").read_text())


def test_it_answers_as_our_own_evaluation_does(study: tuple[Path, dict[str, Any]]) -> None:
    found = study[1]
    assert len(found["questions"]) == 4
    assert set(found["runs"]) == {"full", "fastv", "random", "pooling"}
    for run in found["runs"].values():
        assert run["same_questions_as_full"]
        assert run["answers_equal_to_own_evaluation"] == len(run["answers"]) == 4
        assert run["accuracy"] == run["own_evaluation_accuracy"]


def test_both_models_are_given_the_same_ids(study: tuple[Path, dict[str, Any]]) -> None:
    """Not the text alone: every id that reaches `generate()`, placeholders included."""
    folder, found = study
    seen = []
    for name in ("full", "pooling"):
        command = found["runs"][name]["command"].replace("docs/", f"{ROOT}/docs/")
        command = command.replace("tokenreduce/embedded", f"{ROOT}/tokenreduce/embedded")
        said = ran(["-c", IDS, *command.split()[3:]], folder)
        seen.append(re.findall(r"ids ([0-9a-f]{64})", said))
    assert len(set(seen[0])) == 4
    assert seen[0] == seen[1]
