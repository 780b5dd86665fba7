"""Writes `result.json`: what a run was asked, with which code and machine, and what came out."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

PACKAGES = ("tokenreduce", "torch", "transformers", "hydra-core", "numpy", "pillow")


def write(config: DictConfig, output: Path, numbers: dict[str, Any], seconds: float) -> Path:
    """Write `output/result.json` and return its path.

    The config holds values, not which file they came from: the choices are recorded beside it.
    """
    record = {
        "config": OmegaConf.to_container(config, resolve=True),
        **_choices(),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "seconds": round(seconds, 3),
        **numbers,
    }
    path = output / "result.json"
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")
    return path


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that decide the numbers."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of the checkout that runs, `+changes` where it differs; None outside of one."""
    root, git = Path(__file__).resolve().parents[2], shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        command = [git, "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = ask("status", "--porcelain", "--untracked-files=no")
    return (ask("rev-parse", "HEAD") or "unknown") + ("+changes" if changed else "")


def machine() -> dict[str, Any]:
    """The processor, and the accelerator where one is at hand."""
    row: dict[str, Any] = {"system": platform.platform(), "processor": platform.machine()}
    torch = sys.modules.get("torch")  # a task without torch has no accelerator to name
    if torch is not None:
        row["threads"] = torch.get_num_threads()
        row["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return row


def given() -> list[str]:
    """The overrides of the command line, as given; none where a task is called from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _choices() -> dict[str, Any]:
    """Which option of each group was chosen, and the overrides as given."""
    if not HydraConfig.initialized():
        return {"choices": {}, "overrides": []}
    runtime = HydraConfig.get()
    groups = {k: v for k, v in runtime.runtime.choices.items() if not k.startswith("hydra/")}
    return {"choices": groups, "overrides": given()}
