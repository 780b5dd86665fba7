"""Answers on disk: a folder for one model and one set of questions, a file for each condition.

    evaluation.json          what was asked of which model; another one is refused
    conditions/KEY.json      what a condition is, and what was measured once of it
    answers/KEY.jsonl        a line for every question

Answers are appended batch by batch, by each process to a file of its own (`KEY.RANK.part`), and
put together in the order of the questions when all are there. What a killed run leaves behind is
used by the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tokenreduce.errors import BadOption
from tokenreduce.files import append_lines, atomic, locked, read_lines

HEAD = "evaluation.json"
Row = dict[str, Any]


class Store:
    """Reads and writes the answers of one model to one set of questions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, identity: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Makes the folder for a run, or goes on in one that was made for the same.

        Args:
            identity: what decides the answers: model, weights, questions, dtype, ...
            notes: what is written next to it, of the first run only: versions, machine, ...

        Raises:
            ValueError: the folder holds answers of another model, or to other questions. Nothing
                in it is touched.
        """
        path = self.folder / HEAD
        ours = json.loads(json.dumps(identity))
        with self.locked("folder"):
            if path.is_file():
                theirs = self.head["identity"]
                for name in {**theirs, **ours}:
                    if theirs.get(name) != ours.get(name):
                        raise BadOption(
                            f"{self.folder} holds answers with {name} {_short(theirs.get(name))}, "
                            f"and this run has {_short(ours.get(name))}: give another "
                            "task.folder=..., or move that one away"
                        )
                return
            with atomic(path) as draft:
                draft.write_text(json.dumps({"identity": ours, **notes}, indent=1, default=str))

    @property
    def head(self) -> dict[str, Any]:
        """What was asked of which model."""
        found: dict[str, Any] = json.loads((self.folder / HEAD).read_text())
        return found

    def locked(self, name: str) -> AbstractContextManager[None]:
        """Keeps other runs that share the folder out of the block."""
        return locked(self.folder, name)

    def conditions(self) -> dict[str, dict[str, Any]]:
        """What was noted of every condition, by key, in the order of their beginning."""
        files = sorted(self.folder.glob("conditions/*.json"), key=lambda file: file.name)
        found = {file.stem: json.loads(file.read_text()) for file in files}
        return dict(sorted(found.items(), key=lambda pair: pair[1].get("number", 0)))

    def note(self, key: str, **more: Any) -> None:
        """Adds to what is noted of a condition."""
        path = self.folder / "conditions" / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.locked("conditions"):
            known = json.loads(path.read_text()) if path.is_file() else {}
            known.setdefault("number", len(list(path.parent.glob("*.json"))))
            with atomic(path) as draft:
                draft.write_text(json.dumps({**known, **more}, indent=1, default=str) + "\n")

    def answers(self, key: str) -> dict[str, Row]:
        """The answers that a condition has so far, by the name of the question."""
        found: dict[str, Row] = {}
        for path in (self._file(key), *self._parts(key)):
            found.update((row["item"], row) for row in read_lines(path))
        return found

    def append(self, key: str, rank: int, rows: Iterable[Row]) -> None:
        """Adds answers, all of these or (where the run is killed meanwhile) part of them."""
        append_lines(self._file(key).with_name(f"{key}.{rank}.part"), rows)

    def complete(self, key: str, names: Sequence[str]) -> bool:
        """Whether a condition has an answer to every question, in one file."""
        return self._file(key).is_file() and self.answers(key).keys() >= set(names)

    def settle(self, key: str, names: Sequence[str]) -> None:
        """Puts the answers of a condition together, in the order of the questions.

        Raises:
            RuntimeError: one is missing: a process of this run has failed.
        """
        found = self.answers(key)
        if lacking := [name for name in names if name not in found]:
            raise RuntimeError(
                f"{len(lacking)} answers of {key} are missing, the first to {lacking[0]}"
            )
        with atomic(self._file(key)) as draft:
            append_lines(draft, (found[n] for n in names))
        for part in self._parts(key):
            part.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.folder / "answers" / f"{key}.jsonl"

    def _parts(self, key: str) -> list[Path]:
        named = re.compile(rf"{re.escape(key)}\.\d+\.part")
        found = self._file(key).parent.glob(f"{key}.*.part")
        return sorted(path for path in found if named.fullmatch(path.name))


def pack(indices: Iterable[int], total: int) -> str:
    """Kept tokens as a hexadecimal number whose bit i stands for token i."""
    return f"{sum(1 << i for i in indices):0{-(-total // 4)}x}"


def unpack(kept: str) -> list[int]:
    """The kept tokens of `pack`, ascending."""
    bits = int(kept or "0", 16)
    return [i for i in range(bits.bit_length()) if bits >> i & 1]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."
