"""Files that are written whole or not at all, and what is read from others' files."""

from __future__ import annotations

import ast
import json
import math
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tokenreduce import files
from tokenreduce.errors import BadOption


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may grow beyond `room` bytes: what a full disk is like, for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, MemoryError])
def test_no_draft_is_left_however_writing_ends(tmp_path: Path, stop: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with files.atomic(path) as draft:
            draft.write_text("half")
            raise stop

    with pytest.raises(stop):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with full_disk(1000), pytest.raises(OSError, match="large"):
        files.write_text(path, "x" * 10_000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with files.atomic(path) as one:
        one.write_text("one")
        with files.atomic(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_number_is_written_as_null_and_told(tmp_path: Path) -> None:
    value = {"a": [1.0, math.nan], "b": {"c": -math.inf}, "d": (2, "x")}
    path = files.write_json(tmp_path / "a.json", value)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {"a": [1.0, None], "b": {"c": None}, "d": [2, "x"]}
    assert list(files.odd_numbers(value)) == ["a[1] is nan", "b.c is -inf"]


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", {"file": "caf\udce9.png"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"file": "caf\udce9.png"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": [{"b": "x\\ud800"}]}', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        (b'{"a": "\xff"}', "utf-8"),
        ("{", "Expecting"),
    ],
)
def test_what_is_no_json_is_one_error(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files.parse_json(text)
    assert files.parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("x" * 300, "x...x.*too long"),
        ("~nobody-of-that-name/a", "home directory"),
        ("a\0b", "null"),
        (5, "must be a path, not 5"),
        (None, "must be a path, not None"),
    ],
)
def test_what_cannot_be_a_path_is_one_error(path: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)image.*{message}"):
        files.named(path, "image")


PACKAGE = Path(files.__file__).parent
DRAFTS = {"draft", "new"}
"""Names of what may be written in place: drafts of `whole`."""


def in_place(path: Path) -> Iterator[str]:
    """The calls of a module that would leave half a file where the disk is full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        target: ast.expr | None = None
        if name in ("write_text", "write_bytes") and isinstance(node.func, ast.Attribute):
            target = node.func.value
        elif name == "savefig":
            target = node.args[0]
        elif name == "save_file":
            target = node.args[1]
        if target is not None and not (isinstance(target, ast.Name) and target.id in DRAFTS):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)[:60]}"


def test_nothing_is_written_in_place() -> None:
    """Everything goes through a draft: the kind that half a `report.html` belonged to."""
    shipped = [path for path in PACKAGE.rglob("*.py") if "testing" not in path.parts]
    assert [line for path in shipped for line in in_place(path)] == []


# -- lines of JSON ---------------------------------------------------------------------------------


def test_lines_are_added_behind_what_a_kill_has_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert list(files.read_lines(path)) == []
    files.append_lines(path, [{"a": "é"}, 2])
    whole = path.read_bytes()
    for torn in (b'{"b": [', b'"\xc3', b"\n"[:0]):
        path.write_bytes(whole + torn)
        assert list(files.read_lines(path)) == [{"a": "é"}, 2]
        files.append_lines(path, [3])
        assert list(files.read_lines(path)) == [{"a": "é"}, 2, 3]
        assert list(files.read_lines(path, start=len(whole))) == [3]
    path.write_bytes(b'{"torn')
    files.append_lines(path, [1])
    assert path.read_bytes() == b"1\n"


def test_a_line_that_is_no_json_is_refused_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("1\nno JSON\n2\n")
    with pytest.raises(BadOption, match=r"rows.jsonl holds a line that is no JSON: Expecting"):
        list(files.read_lines(path))
    assert list(files.read_lines(path, strict=False)) == [1, 2]


def test_one_at_a_time_is_in_a_locked_block(tmp_path: Path) -> None:
    inside, most = [], []

    def enter(_: int) -> None:
        with files.locked(tmp_path / "new", "rows"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(8)))
    assert most == [1] * 8


def test_a_locked_folder_has_readers_together_or_one_writer(tmp_path: Path) -> None:
    """The lock leaves no file in the folder, and a folder that is missing is not made."""
    inside: list[str] = []
    most: dict[str, int] = {"read": 0, "write": 0}

    def work(kind: str) -> None:
        with files.folder_locked(tmp_path, writes=kind == "write"):
            inside.append(kind)
            assert kind == "read" or inside == ["write"]
            most[kind] = max(most[kind], inside.count(kind))
            time.sleep(0.05)
            assert kind == "read" or inside == ["write"]
            inside.remove(kind)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, ["read", "read", "read", "write", "write", "read", "read", "read"]))
    assert most["read"] > 1
    assert most["write"] == 1
    with files.folder_locked(tmp_path / "missing"):
        assert list(tmp_path.iterdir()) == []
