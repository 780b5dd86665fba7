"""Writes `result.json`: what a run was asked, with which code and machine, and what came out."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tokenreduce.config import public
from tokenreduce.files import odd_numbers, write_json

PACKAGES = ("tokenreduce", "torch", "transformers", "hydra-core", "numpy", "pillow")
FILES = ("files", "picture", "pictures", "panels", "page", "curve")
"""Keys under which the numbers of a task have paths of files."""
MANY = 6


def write(config: DictConfig, output: Path, numbers: dict[str, Any], seconds: float) -> Path:
    """Write `output/result.json` and return its path.

    The config holds values, not which file they came from: the choices are recorded next to it.
    What the environment gave is given by its name alone. A number that is none (NaN, infinity)
    is written as null, with a warning that names it.
    """
    record = {
        "config": public(config),
        **_choices(),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "seconds": round(seconds, 3),
        **numbers,
    }
    path = write_json(output / "result.json", record, indent=2)
    if odd := list(odd_numbers(numbers)):
        more = f" (and {len(odd) - 3} more)" if len(odd) > 3 else ""
        warnings.warn(
            f"no numbers came out, and are written as null in {path}: {', '.join(odd[:3])}{more}; "
            "the model may compute with too little precision or have broken weights",
            stacklevel=2,
        )
    return path


def files(numbers: dict[str, Any], path: Path) -> list[str]:
    """What a run has written, to be named on the screen: each file once, `result.json` last.

    Many pictures in one folder are named by it. A job of a sweep leaves what all jobs share to the
    end of the sweep.
    """
    found: list[str] = []
    for name in FILES:
        value = numbers.get(name)
        paths = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        folders = {str(Path(one).parent) for one in paths}
        found += sorted(folders) if len(paths) > MANY else paths
    here = path.parent
    found = [str(here / one) if (here / one).exists() else one for one in found]
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        found = [
            one for one in found if Path(one).absolute().is_relative_to(path.parent.absolute())
        ]
    return [*dict.fromkeys(found), str(path)]


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
    """The overrides of the command line, as given; none where a task is called from Python.

    Their interpolations stay as they are: what the environment gives must not be written down.
    """
    if not HydraConfig.initialized():
        return []
    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return [str(word) for word in words]


def _choices() -> dict[str, Any]:
    """Which option of each group was chosen, and the overrides as given."""
    if not HydraConfig.initialized():
        return {"choices": {}, "overrides": []}
    runtime = HydraConfig.get()
    groups = {k: v for k, v in runtime.runtime.choices.items() if not k.startswith("hydra/")}
    return {"choices": groups, "overrides": given()}
