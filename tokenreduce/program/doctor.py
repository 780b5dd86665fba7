"""`tokenreduce doctor`: what is installed here, what it can run on, and what it can read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from tokenreduce import plugins
from tokenreduce.config import known
from tokenreduce.program.listing import WIDTH
from tokenreduce.program.result import versions

DISTRIBUTION = "tokenreduce"
Row = tuple[str, str]


def show() -> None:
    """Prints the findings, one per row; what needs attention begins with `!`."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    for title, rows in (
        ("versions", _versions()),
        ("devices", _devices()),
        ("optional parts", _extras()),
        ("models", _models()),
    ):
        print(title, flush=True)
        for name, text in rows:
            first = f"  {name:<14} "
            print(textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * 17))


def _versions() -> Iterator[Row]:
    for name, number in versions().items():
        yield name, number or "! missing"
        if name == "transformers" and number:
            yield "", measured(number)


def measured(number: str) -> str:
    """Whether the laws were measured on a version of transformers."""
    from tokenreduce.engine.contract import NEWEST, OLDEST

    oldest, newest = (".".join(map(str, end)) for end in (OLDEST, NEWEST))
    found = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    within = f"{oldest} to {newest}, on which tokenreduce was measured"
    if OLDEST <= found <= NEWEST:
        return f"within {within}"
    return f"! outside of {within}: compare a few answers with the unreduced model's"


def _devices() -> Iterator[Row]:
    import torch

    from tokenreduce.inference.loaded import pick_device

    yield "device=auto", str(pick_device("auto"))
    yield "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps", "available"
    if not torch.accelerator.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
        built = f"ROCm {torch.version.hip}" if torch.version.hip else built
        yield "accelerator", f"none found (this torch is built for {built})"


def _extras() -> Iterator[Row]:
    """Each extra of the package, and what of it is missing."""
    try:
        needed = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return
    found: dict[str, list[str]] = {}
    for line in needed:
        parts = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if parts and parts[1] != DISTRIBUTION:
            found.setdefault(parts[2], []).append(parts[1])
    for extra, names in found.items():
        lacking = [name for name in names if not installed(name)]
        how = f'pip install "{DISTRIBUTION}[{extra}]" brings {", ".join(lacking)}'
        yield extra, how if lacking else "complete"


def installed(name: str) -> bool:
    """Whether a distribution is there."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _models() -> Iterator[Row]:
    families = sorted({name for entry in known("adapter").values() for name in entry.families})
    yield "families", f"{', '.join(families)}; others where the adapter generic finds its way"
    embedded = Path(__file__).parents[1] / "embedded" / "checkpoint" / "config.json"
    yield "embedded", "there" if embedded.is_file() else "! missing: reinstall tokenreduce"
    if "flash_attn" not in _modules("flash_attn"):
        yield "attention", "sdpa, eager, flex_attention (flash_attn is not installed)"
    loaded = [module.__name__ for module in plugins.load()]
    yield "plug-ins", ", ".join(loaded) or "none"
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    yield "hub cache", f"{cache}{', offline (HF_HUB_OFFLINE)' if offline else ''}"


def _modules(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name)]
