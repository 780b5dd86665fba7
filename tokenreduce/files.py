"""Files that are written whole or not at all, and what tells the contents of two apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BLOCK = 2**16
STRIDE = 2**22


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A draft beside `path`, which takes its place where the block ends well: never half a file.

    What stood there before is untouched until then; where the disk is full the draft is taken away.
    """
    draft = path.with_name(f"{path.name}.part")
    try:
        yield draft
        with draft.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def skim(path: Path) -> Iterator[bytes]:
    """The size of a file and enough of it to tell it from one that was written anew.

    All of up to 4 MiB; of a larger one 64 KiB of every 4 MiB and the end, so that a tensor of
    4 MiB that was trained does not go unnoticed, and a checkpoint takes a second.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        yield f"{path.name} {size} ".encode()
        if size <= STRIDE:
            yield file.read()
            return
        for start in (*range(0, size, STRIDE), size - BLOCK):
            file.seek(start)
            yield file.read(BLOCK)
