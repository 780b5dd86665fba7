"""Conditions of a benchmark run, kept beside its numbers; per-round lists are not kept."""

from __future__ import annotations

import os
import platform

import pytest
import torch

import tests.benchmark.sizes as sizes
from tests.quiet import quiet_transformers

LOAD = os.getloadavg()


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers():
    with quiet_transformers():
        yield


def pytest_benchmark_update_machine_info(config, machine_info):
    """What the numbers depend on, without the name of the machine."""
    import transformers

    import tokenreduce

    cpu = machine_info["cpu"]
    machine_info.clear()
    machine_info.update(
        cpu=cpu.get("brand_raw", platform.processor()),
        cpus=os.cpu_count(),
        device=_device(),
        threads=torch.get_num_threads(),
        dtype="float32",
        attention="sdpa",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        tokenreduce=tokenreduce.__version__,
        seed=sizes.SEED,
        sizes=sizes.MODE,
        load_at_start=LOAD,
    )


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keeps what a reader compares: no list of single rounds, no options of the runner."""
    output_json["machine_info"]["load_at_end"] = os.getloadavg()
    output_json["command"] = (
        f"OMP_NUM_THREADS=1 {sizes.VARIABLE}={sizes.MODE} pytest --benchmark-only tests/benchmark "
        "--benchmark-json=FILE"
    )
    commit = output_json.pop("commit_info", {})
    output_json["commit"] = {name: commit.get(name) for name in ("id", "dirty")}
    for entry in output_json["benchmarks"]:
        for name in ("options", "fullname", "params", "param"):
            entry.pop(name, None)
        stats = entry["stats"]
        entry["stats"] = {name: stats[name] for name in ("min", "median", "max", "rounds")}
        entry.update(_rounded(entry))


def _rounded(value):
    """Six digits of every number."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "cpu"
