"""The `tokenreduce` command: composes a configuration, runs its task, records the result.

What is refused is refused in one line on stderr, with exit code 2; `debug=true` or the environment
variable HYDRA_FULL_ERROR=1 shows the traceback instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tokenreduce import config as configuration
from tokenreduce import plugins, refusals
from tokenreduce.tasks import Task, first_process, result, tasks

FULL_ERROR = "HYDRA_FULL_ERROR"
TEXT = ("image", "prompt", "model.id")

_debug = ContextVar("debug", default=False)


def main() -> None:
    """Runs the command line in `sys.argv`."""
    configuration.register()
    sys.argv[1:] = share_folder(quote_text(sys.argv[1:]))
    _debug.set(os.environ.get(FULL_ERROR) == "1" or "debug=true" in sys.argv[1:])
    with _short_warnings(), _errors_raised():
        try:
            _program()
        except Exception as error:
            _refuse(error)


def quote_text(arguments: Sequence[str]) -> list[str]:
    """The arguments with free text in quotes, so that Hydra reads no grammar into it.

    `prompt=Is it red, or blue?` would be a sweep over two values, `image=my (1).png` an error. With
    `-m` everything is left as it is: there a comma is meant.
    """
    if "-m" in arguments or "--multirun" in arguments:
        return list(arguments)
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in TEXT and value != "null" and value[:1] not in ("'", '"', "[", ""):
            # Hydra reads a backslash as itself, save before a quotation mark and at the end
            escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
            argument = f"{key}='{escaped}'"
        quoted.append(argument)
    return quoted


def share_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments with one folder for all processes that `torchrun` has started here.

    Each would name it by its own time, and be a second apart. The start of the launcher, which is
    their parent, is the same for all; several machines need `hydra.run.dir=...`.
    """
    given = any(argument.startswith("hydra.run.dir=") for argument in arguments)
    launcher, clock = Path(f"/proc/{os.getppid()}/stat"), Path("/proc/stat")
    if given or "LOCAL_RANK" not in os.environ or not launcher.exists():
        return list(arguments)
    ticks = int(launcher.read_text().rpartition(")")[2].split()[19])  # man 5 proc: starttime
    boot = next(row for row in clock.read_text().splitlines() if row.startswith("btime "))
    started = int(boot.split()[1]) + ticks // os.sysconf("SC_CLK_TCK")
    name = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(started))
    return [*arguments, f"hydra.run.dir=outputs/${{task.name}}/{name}"]


def run(config: DictConfig, output: Path) -> dict[str, Any]:
    """Runs the task that `config.task.name` names and writes `output/result.json`."""
    configuration.refuse_code(config)
    started = time.time()
    numbers = find_task(str(config.task.name))(config, output)
    if first_process():
        path = result.write(config, output, numbers, seconds=time.time() - started)
        print(f"\nWritten: {path}")
    return numbers


def find_task(name: str) -> Task:
    """The task called `name`: ours, imported now, or a plug-in's.

    Raises:
        KeyError: there is none; the known ones are listed.
    """
    plugins.load()
    if name.isidentifier() and importlib.util.find_spec(f"tokenreduce.tasks.{name}"):
        importlib.import_module(f"tokenreduce.tasks.{name}")
    return tasks[name]


@hydra.main(  # type: ignore[untyped-decorator]  # hydra has no types
    version_base="1.3", config_path=str(configuration.directory()), config_name="config"
)
def _program(config: DictConfig) -> None:
    try:
        run(config, Path(HydraConfig.get().runtime.output_dir))
    except Exception as error:
        _refuse(error)


def _refuse(error: Exception) -> None:
    """Leaves with one line for what the user can mend; anything else stays an error."""
    if _debug.get() or not refusals.is_refusal(error):
        raise error
    print(f"tokenreduce: {refusals.one_line(error)}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def _errors_raised() -> Iterator[None]:
    """Hydra raises its errors, rather than printing them in its own way and leaving."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        os.environ.pop(FULL_ERROR, None)
        if before is not None:
            os.environ[FULL_ERROR] = before


@contextmanager
def _short_warnings() -> Iterator[None]:
    """A warning is one line here, without the place in the code that it came from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"tokenreduce: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
