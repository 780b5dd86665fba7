"""How a run ends that does not end well: with what message, which exit code, and what is left."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

REFUSED, FAULT, INTERRUPTED = 2, 1, 130
"""Exit codes: what was asked for cannot be done; a fault in the program; Ctrl-C."""
OUTPUTS = "outputs"
"""Where runs have their folders unless told."""
HYDRA = {"config.yaml", "hydra.yaml", "overrides.yaml"}
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
TOLD = re.compile(r"No space left|StorageFull|Disk quota|File too large|PytorchStreamWriter failed")
"""What writers that raise no OSError say of a full disk: safetensors, torch.save."""


def of_the_disk(error: BaseException) -> str | None:
    """One line where a disk is full or a folder may not be written; None for other errors."""
    for one in chain(error):
        if isinstance(one, OSError) and one.errno in (*SPACE, *CLOSED):
            reason = one.strerror or str(one)
            place = f" ({one.filename})" if one.filename else ""
            if one.errno in SPACE:
                return f"{reason}{place}: nothing half written is left; make room, then start again"
            return f"{reason}{place}: choose a folder that may be written with hydra.run.dir=..."
        if TOLD.search(str(one)) and not isinstance(one, OSError):
            said = " ".join(str(one).split())[:200]
            return f"no room to write ({said}): make room, then start the same command again"
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def tidy(output: Path, keep: bool = False) -> None:
    """Takes away the folder of a run that has written nothing but its configuration.

    Args:
        output: the folder of the run; one with anything else in it stays as it is.
        keep: whether the folder itself was there before the run.
    """
    inside = output / ".hydra"
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    ours = {path.name for path in inside.iterdir()} if inside.is_dir() else set()
    if names - {inside.name, "multirun.yaml"} or ours - HYDRA:
        return
    for path in (*(inside / name for name in ours), output / "multirun.yaml"):
        path.unlink(missing_ok=True)
    parents = output.parents if OUTPUTS in output.parts else ()
    for folder in (inside, *([] if keep else [output, *parents])):
        if folder.is_dir() and not Path.cwd().is_relative_to(folder.resolve()):
            with suppress(OSError):
                folder.rmdir()  # where nothing is in it
        if folder.name == OUTPUTS:
            return


def going_on(output: Path, resumes: bool, sweep: bool) -> str:
    """What Ctrl-C leaves, and how the same command goes on.

    resumes: whether the task finds in its folder what an earlier run has done.
    """
    try:
        shown = os.path.relpath(output)
    except ValueError:  # another drive
        shown = str(output)
    shown = shown if len(shown) < len(str(output)) else str(output)
    if resumes and output.is_dir() and any(p.name != ".hydra" for p in output.iterdir()):
        option = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        folder = os.path.dirname(shown) if sweep else shown
        return f"interrupted; the same command with {option}={folder} goes on where it was"
    if sweep:
        return f"interrupted at the run of {shown}; the runs before it are complete"
    return "interrupted; nothing is left of this run, start the same command again"
