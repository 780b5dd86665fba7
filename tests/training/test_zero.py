"""DeepSpeed's ZeRO-3 on two processes: weights that are gathered as modules are called."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tokenreduce as tr
from tokenreduce.testing.models import FAMILIES

STRATEGIES = ("random", "pyramid_drop", "fastv")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_step_is_that_of_the_whole_model(family: str) -> None:
    script = Path(__file__).with_name("zero.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), family, *STRATEGIES],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    rows = [row.split()[1:] for row in done.stdout.splitlines() if row.startswith("RESULT")]
    assert len(rows) == 2 * len(STRATEGIES), done.stderr[-2000:]
    for _, off, far, same in rows:
        assert float(off) < 1e-6
        assert float(far) < 1e-6
        assert same == "True"


class Wrapper(nn.Module):
    """As DeepSpeed's engine: a configuration of its own, and the model's attributes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.config = {"stage": 3}

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


def test_a_wrapper_with_a_configuration_of_its_own_is_seen_through() -> None:
    model = FAMILIES["llava"].model()
    assert tr.unwrap(Wrapper(model)) is model
    assert tr.unwrap(torch.nn.DataParallel(Wrapper(model))) is model
