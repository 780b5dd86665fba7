"""The runs of one command: which of a sweep have failed, and what is said of them at the end."""

from __future__ import annotations

import sys
import traceback as tracebacks
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tokenreduce.output import table
from tokenreduce.program import ending, result


@dataclass
class Jobs:
    """What happened so far.

    Attributes:
        folders: named on the command line, and there before the program.
        started: how many runs have begun.
        failed: number, overrides and reason of each that has failed.
        code: the exit code that they come to.
    """

    folders: set[Path] = field(default_factory=set)
    started: int = 0
    failed: list[tuple[int, str, str]] = field(default_factory=list)
    code: int = 0
    last: Path | None = None

    def there(self, words: Sequence[str]) -> None:
        """Notes which folders that are named for runs are there already."""
        for word in words:
            key, _, value = word.partition("=")
            if key in ("hydra.run.dir", "hydra.sweep.dir") and Path(value).is_dir():
                self.folders.add(Path(value).absolute())

    def begin(self, output: Path) -> None:
        """Notes that a run begins."""
        self.started += 1
        self.last = output

    def before(self, error: BaseException) -> str | None:
        """One line on what kept the first run from beginning, where its folder did."""
        if self.started or not isinstance(error, OSError | UnicodeError | RecursionError):
            return None
        if isinstance(error, OSError) and not str(error.filename).endswith(".yaml"):
            place = f" {error.filename}" if error.filename else ""
            return (
                f"the folder of the run cannot be written:{place}: {error.strerror or error}; "
                "choose another with hydra.run.dir=..."
            )
        return f"an option file cannot be read: {' '.join(str(error).split())}"

    def fail(self, job: Any, error: Exception, line: str, traceback: bool) -> None:
        """Notes that a run of a sweep has failed, and says so at once; the next one follows."""
        words = " ".join(result.given())
        self.failed.append((int(job.job.num), words, line))
        if traceback:
            tracebacks.print_exception(error)
        self.code = ending.FAULT if traceback else self.code or ending.REFUSED
        print(f"tokenreduce: run {job.job.num} failed: {line}", file=sys.stderr, flush=True)

    def tell(self) -> None:
        """Prints which runs have failed, and takes their common folder away if it is empty."""
        if self.last is not None and len(self.failed) == self.started:
            ending.tidy(self.last.parent, keep=self.last.parent in self.folders)
        title = f"{len(self.failed)} of {self.started} runs failed"
        made = table(title, ("run", "asked for"), right=("run",))
        made.add_column("why", ratio=1)
        for number, words, line in self.failed:
            made.add_row(str(number), escape(words), escape(line))
        Console(stderr=True).print(made)
