"""`report.html` of a run: some questions to look at, and what the run was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig

from tokenreduce.config import public
from tokenreduce.inference.loaded import Loaded
from tokenreduce.program import result
from tokenreduce.viz import Look, write_page


def write_report(
    output: Path,
    looks: Sequence[Look],
    config: DictConfig,
    loaded: Loaded,
    title: str,
    summary: Sequence[str] = (),
) -> Path:
    """Write `report.html` into a run's folder: the questions, and what the run was.

    summary: sentences on all questions, where these are some of them.
    """
    commit, changes, _ = (result.commit() or "").partition("+")
    facts = {
        "model": "embedded" if loaded.embedded else loaded.source,
        "device": loaded.device,
        "commit": f"{commit[:12]}{changes and ' with changes'}" or None,
    }
    details = {
        "Configuration": yaml.safe_dump(public(config), allow_unicode=True, sort_keys=False),
        "Versions": result.versions(),
        "Machine": result.machine(),
    }
    path = output / "report.html"
    return write_page(path, looks, title=title, facts=facts, details=details, summary=summary)
