"""Files that are written whole or not at all, and what tells the contents of two apart."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenreduce.errors import BadOption

BLOCK = 2**16
STRIDE = 2**22


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A draft next to `path`, which takes its place where the block ends well: never half a file.

    What stood there before is untouched until then. Each draft has a name of its own, so that
    several processes may write one file: the last whole one wins. However the block ends (a full
    disk, Ctrl-C), no draft is left. Its name has another ending than `path`: writers that go by
    endings, as those of pictures do, must be told the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name[:40]}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        yield draft
        with draft.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Writes `text` to `path`, whole or not at all; returns `path`.

    A lone surrogate, which no UTF-8 file can hold, is written as its escape: in a name of a file it
    stands for a byte that is no text.
    """
    with atomic(path) as draft:
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


def write_json(path: Path, value: Any, indent: int | None = None) -> Path:
    """Writes `value` as valid JSON to `path`, whole or not at all; returns `path`.

    What JSON has no word for is written as null (NaN and the infinities) or as text (paths).
    """
    text = json.dumps(
        finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str
    )
    return write_text(path, text + "\n")


def append_lines(path: Path, rows: Iterable[Any]) -> None:
    """Adds a line of JSON for each of `rows` to a file, and has them on the disk when it returns.

    Where the process is killed meanwhile, all of these lines or part of them are there; what a kill
    has left of a line is taken away first. Processes that share the file take turns with `locked`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, start: int = 0, strict: bool = True) -> Iterator[Any]:
    """The value of every line of JSON in a file; of none where there is no file.

    What a kill has left of a last line is left out.

    Args:
        path: of the file.
        start: bytes that are skipped, at the beginning of a line.
        strict: whether a line that is no JSON is an error; else it is left out.

    Raises:
        ValueError: a whole line is no JSON.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError as error:
            if strict:
                raise BadOption(f"{path} holds a line that is no JSON: {error}") from error


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Keeps other processes and threads out of the block that is called `name` in `folder`."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        yield


@contextmanager
def folder_locked(folder: Path, writes: bool = False) -> Iterator[None]:
    """Keeps out those who write into `folder`, and all others too where the block itself writes.

    By a lock of the folder itself, which, unlike that of `locked`, leaves no file in it: for
    folders that a user publishes, or may only read. It ends with the process. Where there are no
    such locks (Windows, some file systems of a network, no such folder) no process is kept out.
    """
    handle = None
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX if writes else fcntl.LOCK_SH)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # a forked process may have it open as well
            os.close(handle)


def finite(value: Any) -> Any:
    """`value` with None for every float that is not finite, in nested mappings and sequences."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def odd_numbers(value: Any, place: str = "") -> Iterator[str]:
    """The places of floats that are not finite, as dotted paths with their values."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} is {value}"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from odd_numbers(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from odd_numbers(inner, f"{place}[{i}]")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds.

    Raises:
        ValueError: no JSON, no UTF-8, nested beyond what Python reads, or a lone surrogate in a
            text, which nothing could print or save.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadOption("nested too deeply") from None
    if surrogate := _surrogate(value):
        raise BadOption(f"{surrogate!a} holds half a character (a lone surrogate)")
    return value


def named(path: Any, what: str) -> Path:
    """The path that was given for `what`, with `~` for the home folder.

    Raises:
        ValueError: no path, one that no file system can have, or the home of no user.
    """
    if not isinstance(path, str | os.PathLike):
        raise BadOption(f"{what} must be a path, not {path!r}")
    try:
        found = Path(path).expanduser()
        os.fsencode(found)
        if "\0" in str(found):
            raise BadOption("it holds a null character")
        found.is_dir()  # a name that is too long is told here
    except (OSError, RuntimeError, ValueError) as error:
        said = os.fspath(path)
        said = said if len(said) < 100 else f"{said[:60]}...{said[-30:]}"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadOption(f"{what} {said!r} cannot be a path here: {reason}") from None
    return found


def _surrogate(value: Any) -> str | None:
    """The first text in nested lists and dicts that UTF-8 cannot hold; the depth is bounded."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            if not one.isascii() and any("\ud800" <= letter <= "\udfff" for letter in one):
                return one[:60]
        elif isinstance(one, dict):
            stack += [*one, *one.values()]
        elif isinstance(one, list):
            stack += one
    return None


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


def first_process() -> bool:
    """Whether this is the one of several processes that writes files and speaks."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True, order=True)
class _Tensor:
    """Where a tensor of a safetensors file lies: its bytes from `begin` to `end`."""

    name: str
    kind: str
    sizes: tuple[int, ...]
    path: Path
    begin: int
    end: int


def skim_tensors(paths: Iterable[Path], named: Callable[[str], str]) -> Iterator[bytes]:
    """What `skim` reads, of the tensors in safetensors files and not of how they are written down.

    In whatever order, in however many files and under whatever name that `named` takes for the
    same: types, sizes and numbers are what counts. A file that is none is skimmed as it is.
    """
    found: list[_Tensor] = []
    for path in sorted(paths):
        try:
            found += _tensors(path, named)
        except (ValueError, KeyError, TypeError, AttributeError):
            yield from skim(path)
    found.sort()
    yield json.dumps([(one.name, one.kind, one.sizes) for one in found]).encode()
    size = sum(one.end - one.begin for one in found)
    starts = (*range(0, size, STRIDE), size - BLOCK) if size > STRIDE else (0,)
    length = BLOCK if size > STRIDE else size
    at = 0
    for one in found:
        after = at + one.end - one.begin
        wanted = [(max(start, at), min(start + length, after)) for start in starts]
        with one.path.open("rb") as file:
            for first, last in wanted:
                if first < last:
                    file.seek(one.begin + first - at)
                    yield file.read(last - first)
        at = after


def _tensors(path: Path, named: Callable[[str], str]) -> list[_Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if length > size - 8:
            raise BadOption(f"{path} is no safetensors file")
        table = parse_json(file.read(length))
    found = []
    for name, what in table.items():
        if name != "__metadata__":
            begin, end = (8 + length + int(at) for at in what["data_offsets"])
            sizes = tuple(map(int, what["shape"]))
            found.append(_Tensor(named(name), str(what["dtype"]), sizes, path, begin, end))
    return found
