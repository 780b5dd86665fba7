"""The `tokenreduce` command: composes a configuration, runs its task, records the result.

What is refused is refused in one line on stderr, with exit code 2; `debug=true` or the environment
variable HYDRA_FULL_ERROR=1 shows the traceback instead. Ctrl-C leaves with one line and 130.
"""

from __future__ import annotations

import os
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
from hydra.types import RunMode
from omegaconf import DictConfig

from tokenreduce import config as configuration
from tokenreduce import plugins
from tokenreduce.errors import Refused
from tokenreduce.files import first_process
from tokenreduce.program import arguments, ending, options, refusals, result
from tokenreduce.program.arguments import quote_text, share_folder
from tokenreduce.program.jobs import Jobs
from tokenreduce.program.sweep import watched
from tokenreduce.tasks import Task, find, tasks

__all__ = ["find_task", "main", "quote_text", "run", "share_folder"]

FULL_ERROR = "HYDRA_FULL_ERROR"

_debug = ContextVar("debug", default=False)
_jobs: ContextVar[Jobs | None] = ContextVar("jobs", default=None)
"""The runs of this program; None in a process that a launcher has started for one of them."""


def main() -> None:
    """Runs the command line in `sys.argv`."""
    given, jobs = sys.argv[1:], Jobs()
    _debug.set(os.environ.get(FULL_ERROR) == "1" or "debug=true" in given)
    _jobs.set(jobs)
    with _short_warnings(), _errors_raised(), _any_text():
        try:
            if not _answered(given):
                configuration.register()
                sys.argv[1:] = watched(arguments.read(given))
                options.check_files(sys.argv[1:])
                jobs.there(sys.argv[1:])
                _program()
        except KeyboardInterrupt:
            _interrupted("interrupted before anything ran")
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(ending.FAULT)
        except Exception as error:
            refused = refusals.is_refusal(error)
            line = refusals.one_line(error) if refused else jobs.before(error)
            if _debug.get() or line is None:
                raise
            _leave(line)
    if jobs.failed:
        jobs.tell()
        sys.exit(jobs.code)


def _answered(given: Sequence[str]) -> bool:
    """Answers `list`, `doctor` and `--version`; whether it was one of these."""
    word = given[0] if given else ""
    if word == "list":
        from tokenreduce.program import listing

        listing.show(given[1:])
    elif word == "doctor":
        from tokenreduce.program import doctor

        doctor.show()
    elif word in ("--version", "version"):
        from tokenreduce.program import listing

        print(listing.version())
    elif given == ["help"]:
        sys.argv[1:] = ["--help"]
        return False
    else:
        return False
    return True


def run(config: DictConfig, output: Path) -> dict[str, Any]:
    """Runs the task that `config.task.name` names and writes `output/result.json`."""
    configuration.refuse_code(config)
    started = time.time()
    task = find_task(str(config.task.name))
    options.check_installed(f"task={config.task.name}", task.needs)
    data = configuration.known("data")[str(config.data.name)]
    options.check_installed(f"data={config.data.name}", data.needs)
    options.check(config, task.least)
    numbers = task(config, output)
    if first_process():
        path = result.write(config, output, numbers, seconds=time.time() - started)
        print("", *(f"Written: {file}" for file in result.files(numbers, path)), sep="\n")
    return numbers


def find_task(name: str) -> Task:
    """The task called `name`, ours or a plug-in's; imported when it runs.

    Raises:
        KeyError: there is none; the known ones are listed.
    """
    plugins.load()
    return find(name)


@hydra.main(  # type: ignore[untyped-decorator]  # hydra has no types
    version_base="1.3", config_path=str(configuration.directory()), config_name="config"
)
def _program(config: DictConfig) -> None:
    _job(config)


def _job(config: DictConfig) -> None:
    """One run: the only one, or one of a sweep, which goes on where this one fails."""
    job, jobs = HydraConfig.get(), _jobs.get()
    output, sweep = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
    keep = jobs is not None and output in jobs.folders
    configuration.warn_renamed(job.runtime.choices)
    try:
        if jobs is not None:
            jobs.begin(output)
        run(config, output)
    except KeyboardInterrupt:
        name = str(config.task.name)
        line = ending.going_on(output, name in tasks and find(name).resumes, sweep)
        ending.tidy(output, keep)
        _interrupted(line)
    except Exception as error:
        refused = refusals.is_refusal(error)
        line = refusals.one_line(error) if refused else f"{type(error).__name__}: {error}"
        if first_process():
            ending.tidy(output, keep)
        if sweep and jobs is not None:
            jobs.fail(job, error, line, traceback=_debug.get() or not refused)
        elif _debug.get() or not refused:
            raise
        elif sweep:  # the launcher takes it to the program that asked for it
            raise Refused(line) from None
        else:
            _leave(line)


def _leave(line: str) -> None:
    print(f"tokenreduce: {line}", file=sys.stderr)
    sys.exit(ending.REFUSED)


def _interrupted(line: str) -> None:
    """Leaves after Ctrl-C; one of several processes speaks."""
    if _debug.get():
        raise
    if first_process():
        print(f"\ntokenreduce: {line}", file=sys.stderr)
    sys.exit(ending.INTERRUPTED)


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


@contextmanager
def _any_text() -> Iterator[None]:
    """What the terminal's encoding has no letter for is printed as its escape."""
    streams = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)
