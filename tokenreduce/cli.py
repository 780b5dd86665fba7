"""The `tokenreduce` command: composes a configuration, runs its task, records the result."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig

from tokenreduce import config as configuration

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Runs the command line in `sys.argv`."""
    _program()


@hydra.main(
    version_base="1.3", config_path=str(configuration.directory()), config_name="config"
)
def _program(config: DictConfig) -> None:
    output = Path(HydraConfig.get().runtime.output_dir)
    from tokenreduce.tasks import tasks

    name = config.task.name
    if name.isidentifier() and importlib.util.find_spec(f"tokenreduce.tasks.{name}") is not None:
        importlib.import_module(f"tokenreduce.tasks.{name}")
    tasks[name](config, output)
