"""Encoded conversations as a dataset of torch, which leaves out what cannot be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tokenreduce.data.conversations import Conversations, check_bad
from tokenreduce.data.rows import Conversation, Unusable
from tokenreduce.errors import BadOption
from tokenreduce.files import append_lines, locked, read_lines


class EncodedDataset(Dataset[dict[str, Tensor]]):
    """The inputs and labels of conversations, each made when it is asked for.

    Args:
        conversations: what is encoded.
        encoder: an `Encoder`.
        bad: `"error"` stops at a row that cannot be encoded; `"skip"` gives the next row that can,
            beginning anew after the last, so that the length and the order of an epoch stay.
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
        self._noted: set[tuple[Any, Any]] = set()  # what the log had when it was read last
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
        with locked(self.log.parent, self.log.name):
            for one in read_lines(self.log, self._read, strict=False):  # noted since the last time
                if isinstance(one, dict):
                    self._noted.add((one.get("name"), one.get("row")))
            if key not in self._noted:
                append_lines(self.log, [row])
            self._read = self.log.stat().st_size
