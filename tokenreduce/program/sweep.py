"""What a sweep says around its jobs: where they write, and at its end one table of all of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

WATCH = "+hydra.callbacks.tokenreduce={_target_: tokenreduce.program.sweep.Sweep}"


def watched(arguments: Sequence[str]) -> list[str]:
    """The command line of a sweep with what speaks before and after its jobs; any other as it is.

    No file of the configuration can name code, so this one is named here; among the other
    overrides, as Hydra takes them in one piece.
    """
    if "-m" not in arguments and "--multirun" not in arguments:
        return list(arguments)
    first = next((i for i, word in enumerate(arguments) if "=" in word), len(arguments))
    return [*arguments[:first], WATCH, *arguments[first:]]


def in_sweep() -> bool:
    """Whether this run is one job of a sweep."""
    return HydraConfig.initialized() and bool(HydraConfig.get().mode == RunMode.MULTIRUN)


class Sweep(Callback):  # type: ignore[misc]  # hydra has no types
    """Speaks where the sweep was started, whatever launcher runs its jobs."""

    def on_multirun_start(self, config: DictConfig, **given: Any) -> None:
        """Says where the results of the jobs will be."""
        print(f"tokenreduce: a folder for each job in {config.hydra.sweep.dir}", file=sys.stderr)

    def on_multirun_end(self, config: DictConfig, **given: Any) -> None:
        """Prints the table that the jobs of `task=evaluate` have made together."""
        if config.task.name != "evaluate":
            return
        from tokenreduce.evaluation.table import print_stored

        root = Path(str(config.task.folder or config.hydra.sweep.dir)).expanduser()
        if (root / "table.json").is_file():
            print_stored(root)
