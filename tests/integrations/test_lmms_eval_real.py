"""lmms-eval itself, where it is installed: full and reduced, asked the same, word for word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_it_answers_as_our_own_evaluation_does(tmp_path: Path) -> None:
    ran([str(STUDY / "run.py"), "--images=2", "--questions=2", "--output=found.json"], tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["questions"]) == 4
    for run in found["runs"].values():
        assert run["same_questions_as_full"]
        assert run["answers_equal_to_own_evaluation"] == len(run["answers"]) == 4
        assert run["accuracy"] == run["own_evaluation_accuracy"]
    assert set(found["runs"]) == {"full", "fastv", "random", "pooling"}


def test_both_models_are_given_the_same_ids(tmp_path: Path) -> None:
    """Not the text alone: every id that reaches `generate()`, placeholders included."""
    ran([str(STUDY / "run.py"), "--images=1", "--questions=2", "--output=found.json"], tmp_path)
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]
    seen = []
    for name in ("full", "pooling"):
        words = runs[name]["command"].split()[3:]
        words = [str(ROOT / x) if x.startswith("docs/") else x for x in words]
        words = [x.replace("tokenreduce/embedded", f"{ROOT}/tokenreduce/embedded") for x in words]
        said = ran(["-c", IDS, *words], tmp_path).splitlines()
        seen.append([line for line in said if line.startswith("ids ")])
    assert len(seen[0]) == 2
    assert len(set(seen[0])) == 2
    assert seen[0] == seen[1]
