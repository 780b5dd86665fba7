"""Two processes on one CPU: DDP, FSDP2 and a parallel Trainer compute what one process computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from filelock import FileLock

import tokenreduce as tr
from tests.training.loops import make, run
from tests.training.ranks import ORDERS, SCHEDULE
from tests.training.reference import MIXED, assert_same
from tokenreduce.integrations.trainer import follow
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("two processes on a CPU talk through gloo", allow_module_level=True)

RANKS = Path(__file__).with_name("ranks.py")
MINUTES = 5


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder with what both ranks found: one run, also for the workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            folder.mkdir()
            (folder / "said").write_text(launch(folder))
    said = (folder / "said").read_text()
    assert not said, said
    return folder


def launch(folder: Path) -> str:
    """Runs both ranks; what they said where one of them failed, else nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=60 * MINUTES)[0] for process in started]
    except subprocess.TimeoutExpired:
        return f"the ranks were not done after {MINUTES} minutes"
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    return "\n".join(text[-4000:] for text in said) or str(codes) if any(codes) else ""


@pytest.fixture(scope="module")
def found(ranks: Path) -> list[dict[str, dict[str, float]]]:
    """Per rank, what it found by name."""
    return [json.loads((ranks / f"{rank}.json").read_text()) for rank in range(2)]


def steps(kind: str, *names: str) -> list[str]:
    return [f"{kind}, {name}, {order}" for name in names for order in ORDERS]


METHODS = ("pyramid_drop", "fastv")
STEPS = [
    *steps("ddp", "pyramid_drop", "text alone"),
    *steps("fsdp", *METHODS, "text logits", "text alone", "qwen2_vl", "checkpointing"),
    *(f"fsdp, {name}" for name in ("sparsevlm", "fastervlm", "cdpruner", "generic", "compiled")),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_a_parallel_step_is_that_of_one_process(found, name):
    for rank in range(2):
        off = found[rank][name]
        assert off["loss"] < 2e-6
        assert off["largest"] > 0.01
        assert off["gradient"] < 2e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", steps("generate", "fastv"))
def test_a_sharded_model_generates(found, name):
    for rank in range(2):
        assert found[rank][name]["words"] == 0
        assert found[rank][name]["said"] > 60


@pytest.mark.slow
@pytest.mark.parametrize("logits", ["full", "text"])
def test_a_trainer_on_two_ranks(ranks, found, logits, tmp_path):
    """The same step as one process takes on the joined batch, logs and checkpoint included."""
    model = FAMILIES["llava"].model()
    loop, step = make(model, tmp_path, images=MIXED)
    with tr.reduce(model, "pyramid_drop", SCHEDULE, positions="keep", logits=logits) as reduction:
        follow(loop, reduction)
        run(loop, step)
    alone = next(row for row in loop.state.log_history if "loss" in row)
    for rank in range(2):
        told = found[rank][f"trainer, {logits}"]
        assert told["items"] == step.items[0]
        assert told["loss"] == pytest.approx(alone["loss"], abs=2e-5)
        weights = torch.load(ranks / logits / f"{rank}.pt", weights_only=True)
        assert_same(weights, step.weights, share=1e-5)
        for name in ("visual_tokens_in", "visual_tokens_out", "kept_share", "flops_share"):
            assert told[f"tokenreduce/{name}"] == pytest.approx(alone[f"tokenreduce/{name}"])
    with tr.load(model, ranks / logits / "checkpoint-1") as again:
        assert again.scheduler == SCHEDULE
        with torch.no_grad():
            model(**batch(FAMILIES["llava"], (1,)).inputs)
