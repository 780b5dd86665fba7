"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
