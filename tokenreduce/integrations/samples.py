"""Reads what lmms-eval's `--log_samples` writes: one answer per question, to compare two runs."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from tokenreduce.errors import BadOption, Missing
from tokenreduce.files import parse_json

OWN = frozenset(
    {"doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "token_counts"}
    | {"doc_hash", "prompt_hash", "target_hash", "input_media"}
)
"""Fields of a logged sample that lmms-eval writes itself; every other one is a metric."""
SCORES = ("score", "correct", "acc", "accuracy")
"""Under which a metric that is a mapping has its number."""


def read_samples(
    path: str | Path, metric: str | None = None, *, image: str = "image", group: str = "group"
) -> list[dict[str, Any]]:
    """The logged answers of one task, in the order of their questions.

    Two runs of a task, read so, are paired by `id`; `prompt` says whether both were asked the same.

    Args:
        path: a `..._samples_<task>.jsonl`, or a folder with exactly one such file below it.
        metric: which of the task's metrics says what is right; None where there is only one.
        image: the field that names the picture, in a metric's mapping or in the logged document.
        group: likewise of the question's kind.

    Returns:
        a dict for every question: `id` (its number in the data), `image` (None where the log does
        not say), `group` (likewise), `prompt` (the text of the question), `answer`, `expected`,
        `score` (the metric) and `correct` (a score of at least one half).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no logged sample, two answers to one question, several files or
            several metrics to choose from, or a metric that is not there.
    """
    file = _file(Path(path))
    found: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{file.name} line {number}"
        row = _row(line, place)
        name = _metric(row, metric, place)
        value = row[name]
        known = {**_mapping(row.get("doc")), **_mapping(value)}
        score = _score(value, f"{place}: {name}")
        if row["doc_id"] in found:
            raise BadOption(f"{place}: question {row['doc_id']} has an answer already")
        found[row["doc_id"]] = {
            "id": row["doc_id"],
            "image": known.get(image),
            "group": known.get(group),
            "prompt": row.get("input"),
            "answer": _first(row["filtered_resps"]),
            "expected": row["target"],
            "score": score,
            "correct": score >= 0.5,
        }
    return [found[key] for key in sorted(found)]


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.rglob("*_samples_*.jsonl")) if path.is_dir() else []
    if not found:
        raise Missing(f"{path} holds no ..._samples_<task>.jsonl: run with --log_samples")
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in found)
        raise BadOption(f"{path} holds several samples files, name one of them: {names}")
    return found[0]


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise BadOption(f"{place} is no JSON ({error}): it was not written to its end") from None
    for name in ("doc_id", "target", "filtered_resps"):
        if not isinstance(row, dict) or name not in row:
            raise BadOption(f"{place} is no sample of lmms-eval: it has no {name!r}")
    return dict(row)


def _metric(row: Mapping[str, Any], metric: str | None, place: str) -> str:
    known = [name for name, value in row.items() if name not in OWN and _scored(value)]
    if metric is None and len(known) == 1:
        return known[0]
    if metric not in known:
        asked = "say which metric decides" if metric is None else f"no metric {metric!r}"
        raise BadOption(f"{place}: {asked} (known: {', '.join(known) or 'none'})")
    return metric


def _scored(value: Any) -> bool:
    named = any(isinstance(_mapping(value).get(name), Real) for name in SCORES)
    return isinstance(value, Real) or named


def _score(value: Any, place: str) -> float:
    if isinstance(value, Mapping):
        value = next(value[name] for name in SCORES if isinstance(value.get(name), Real))
    if not 0 <= float(value) <= 1:
        raise BadOption(f"{place} is {value!r}: a score lies between 0 and 1")
    return float(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _first(answer: Any) -> Any:
    while isinstance(answer, list) and answer:
        answer = answer[0]
    return answer
