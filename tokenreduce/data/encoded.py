"""Encoded conversations as a dataset of torch, which leaves out what cannot be trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from tokenreduce.data.conversations import Conversations, check_bad
from tokenreduce.data.rows import Conversation, Unusable
from tokenreduce.errors import BadOption

try:
    import fcntl
except ImportError:  # not on Windows; there two workers may note the same row
    fcntl = None  # type: ignore[assignment]


class EncodedDataset(Dataset[dict[str, Tensor]]):
    """The inputs and labels of conversations, each made when it is asked for.

    Args:
        conversations: what is encoded.
        encoder: an `Encoder`.
        bad: `"error"` stops at a row that cannot be encoded; `"skip"` gives the next row that can,
            beginning anew behind the last, so that the length and the order of an epoch stay.
        log: a file that gets a line `{"name": ..., "reason": ..., "detail": ...}` for every row
            that was skipped, once, from whatever process and run; `"row"` is its index.
    """

    def __init__(
        self,
        conversations: Conversations,
        encoder: Callable[[Conversation], dict[str, Tensor]],
        bad: str = "error",
        log: str | Path | None = None,
    ) -> None:
        check_bad(bad)
        self.conversations = conversations
        self.encoder = encoder
        self.bad = bad
        self.log = None if log is None else Path(log)
        self._faults: dict[int, str] = {}  # by index: what is known to be unusable
        self._noted: set[tuple[str, int]] = set()  # what the log had when it was read last
        self._read = 0  # bytes of the log until there

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Inputs and labels of the row at `index`, or of the next one that is usable.

        Raises:
            IndexError: there are fewer rows.
            ValueError: the row is unusable and `bad="error"`, or all are.
        """
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"row {index} of {size}")
        for step in range(size):
            place = (index + step) % size
            if place in self._faults:
                continue
            try:
                return self._encode(place)
            except Unusable as error:
                if self.bad == "error":
                    raise BadOption(
                        f"{self._name(place)}: {error}; mend the row, or leave such rows out with "
                        "bad=skip"
                    ) from error
                self._skip(place, error)
        raise BadOption(f"no row of {size} is usable (the last: {self._faults[place]})")

    def _encode(self, place: int) -> dict[str, Tensor]:
        try:
            return self.encoder(self.conversations[place])
        except Unusable:
            raise
        except Exception as error:  # a fault of the program: say where, and let it pass
            error.add_note(f"row {place}: {self._name(place)}")
            raise

    def _name(self, place: int) -> str:
        try:
            return self.conversations[place].name
        except Unusable:
            return f"row {place}"

    def _skip(self, place: int, error: Unusable) -> None:
        self._faults[place] = str(error)
        if self.log is None:
            return
        key = self._name(place), place
        row = {"name": key[0], "row": place, "reason": error.reason, "detail": error.detail}
        # one write of a whole line at the file's end: lines of several processes do not mix
        handle = os.open(self.log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with os.fdopen(handle, "rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            file.seek(self._read)
            fresh = file.read()  # what has been noted since
            self._read += len(fresh)
            self._noted.update(filter(None, map(_key, fresh.splitlines())))
            if key not in self._noted:
                os.write(handle, (json.dumps(row, ensure_ascii=False) + "\n").encode())


def _key(line: bytes) -> tuple[str, int] | None:
    """The name and index in a line of the log."""
    try:
        row = json.loads(line)
        return str(row["name"]), int(row["row"])
    except (ValueError, KeyError, TypeError):
        return None
