"""What the command line can do: one function per task, registered by name.

A task takes the composed configuration and the folder of the run, and returns the numbers that go
into `result.json`. The modules are imported on demand: some need transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenreduce.registry import Registry

Task = Callable[[Any, Path], dict[str, Any]]

tasks: Registry[Task] = Registry("task")
