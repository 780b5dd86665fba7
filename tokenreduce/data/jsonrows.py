"""Rows of a JSON file by their places in it: nothing of a large file stays in memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.data.rows import Conversation, Unusable, image_names, image_path, read_row
from tokenreduce.errors import BadOption
from tokenreduce.files import parse_json


class JsonRows:
    """Reads the row at an index from the file, every time anew.

    Attributes:
        file: JSON lines, or one JSON list.
        folder: where the names of images start.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self.file = file
        self.folder = folder
        self._start, self._size, self._line = (array("Q") for _ in range(3))  # bytes, lines

    def add(self, start: int, size: int, line: int) -> None:
        """Note a row that lies `start` bytes into the file, on that line."""
        for column, value in zip(self._columns(), (start, size, line), strict=True):
            column.append(value)

    def keep(self, indices: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._start, self._size, self._line = (
            array("Q", (column[i] for i in indices)) for column in self._columns()
        )

    def __call__(self, index: int) -> Conversation:
        """The conversation of a row.

        Raises:
            Unusable: what is wrong with it.
        """
        with self.file.open("rb") as file:
            file.seek(self._start[index])
            raw = file.read(self._size[index])
        row = parse(raw)
        return self.conversation(row, self.name(row, self._line[index]))

    def conversation(self, row: Any, name: str) -> Conversation:
        """The same of a parsed row."""
        paths = [image_path(image, self.folder) for image in image_names(row)]
        return read_row(row, name, paths)

    def name(self, row: Any, line: int) -> str:
        """A row's own id, or its file and line."""
        own = row.get("id") if isinstance(row, dict) else None
        return f"{self.file.name}:{line}" if own is None else str(own)

    def _columns(self) -> tuple[array[int], array[int], array[int]]:
        return self._start, self._size, self._line


def index_rows(file: Path, rows: JsonRows) -> Iterator[tuple[str, str, Unusable | None]]:
    """Tells `rows` where every row of `file` lies, and yields what is wrong with it.

    Yields:
        name, `file:line` with the row's id, and the fault or None.

    Raises:
        ValueError: one JSON list whose end cannot be found.
    """
    for start, raw, line in _list(file) if _is_list(file) else _lines(file):
        rows.add(start, len(raw), line)
        row, fault = None, None
        try:
            row = parse(raw)
            rows.conversation(row, "")
        except Unusable as error:
            fault = error
        name, place = rows.name(row, line), f"{file}:{line}"
        yield name, place if name.endswith(f":{line}") else f"{place} ({name})", fault


def parse(raw: bytes) -> Any:
    """The object that a row holds.

    Raises:
        Unusable: it is not JSON.
    """
    try:
        return parse_json(raw)
    except ValueError as error:  # UnicodeDecodeError is one as well
        raise Unusable("broken JSON", str(error)) from None


def _is_list(file: Path) -> bool:
    with file.open("rb") as opened:
        for line in opened:
            start = line.removeprefix(b"\xef\xbb\xbf").lstrip()
            if start:
                return start.startswith(b"[")
    return False


def _lines(file: Path) -> Iterator[tuple[int, bytes, int]]:
    start = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                yield start, line, number
            start += len(line)


def _list(file: Path) -> Iterator[tuple[int, bytes, int]]:
    """The elements of one JSON list, one after the other; the list is never built as a whole."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise BadOption(f"{file}: not UTF-8 ({error}): convert the file") from None
    scan = json.JSONDecoder().raw_decode
    at = _skip(text, text.index("[") + 1)
    line, start, seen = 1, 0, 0  # up to the character `seen`: lines and bytes
    while text[at : at + 1] != "]":
        try:
            _, end = scan(text, at)
            after = _skip(text, end)
            if text[after : after + 1] not in (",", "]"):
                raise json.JSONDecodeError("expected , or ]", text, after)
        except (ValueError, RecursionError) as error:
            raise BadOption(
                f"{file}: broken JSON ({error}); one list cannot be read beyond this: mend it, or "
                "write one object per line"
            ) from None
        line += text.count("\n", seen, at)
        start += len(text[seen:at].encode())
        raw = text[at:end].encode()
        yield start, raw, line
        line += text.count("\n", at, end)
        start, seen = start + len(raw), end
        at = _skip(text, after + 1) if text[after] == "," else after


def _skip(text: str, at: int) -> int:
    """The next place that is not white space."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
