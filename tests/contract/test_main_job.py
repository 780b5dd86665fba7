"""The command of the README, in a process of its own, with warnings as errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]


def test_main_job_is_clean(tmp_path: Path) -> None:
    unmeasured = f"ignore:transformers {transformers.__version__} is"  # said by the engine
    command = [sys.executable, "-W", "error", "-W", unmeasured, "-m", "tokenreduce", "device=cpu"]
    command += ["task.runs=1", "max_new_tokens=4", f"hydra.run.dir={tmp_path}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.returncode == 0
    assert json.loads((tmp_path / "result.json").read_text())
