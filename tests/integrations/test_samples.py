"""What lmms-eval logs becomes records that can be paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenreduce.integrations.samples import read_samples


def row(number: int, **more: Any) -> dict[str, Any]:
    """As lmms-eval 0.7 writes a sample."""
    return {
        "doc_id": number,
        "target": "yes",
        "filtered_resps": "yes",
        "token_counts": [{"output_tokens": 2}],
        "doc_hash": "x",
        "input": f"question {number}",
    } | more


def log(folder: Path, *rows: dict[str, Any], name: str = "1_samples_task.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_records_come_in_the_order_of_questions(tmp_path: Path) -> None:
    wrong = {"image": 4, "group": "count", "score": 0.0}
    right = {"image": 3, "group": "exist", "score": 1.0}
    path = log(tmp_path, row(1, shapes=wrong, filtered_resps="no"), row(0, shapes=right))
    first, second = read_samples(tmp_path)
    assert first == {
        "id": 0,
        "image": 3,
        "group": "exist",
        "prompt": "question 0",
        "answer": "yes",
        "expected": "yes",
        "score": 1.0,
        "correct": True,
    }
    assert (second["id"], second["image"], second["answer"]) == (1, 4, "no")
    assert (second["score"], second["correct"]) == (0.0, False)
    assert read_samples(path) == [first, second]


def test_plain_scores_lists_and_documents(tmp_path: Path) -> None:
    """A number as a metric; answers in lists; the document that older versions log."""
    doc = {"imageId": "n7", "types": "query"}
    path = log(tmp_path, row(0, exact_match=0.6, filtered_resps=["maybe"], doc=doc))
    (found,) = read_samples(path, image="imageId", group="types")
    assert (found["image"], found["group"], found["answer"]) == ("n7", "query", "maybe")
    assert (found["score"], found["correct"]) == (0.6, True)
    (bare,) = read_samples(path)
    assert (bare["image"], bare["group"]) == (None, None)


def test_a_metric_is_chosen(tmp_path: Path) -> None:
    path = log(tmp_path, row(0, exact_match=1.0, anls=0.2))
    assert read_samples(path, "anls")[0]["correct"] is False
    assert read_samples(path, "exact_match")[0]["correct"] is True
    with pytest.raises(ValueError, match=r"say which metric decides \(known: exact_match, anls\)"):
        read_samples(path)
    with pytest.raises(ValueError, match=r"no metric 'f1' \(known: exact_match, anls\)"):
        read_samples(path, "f1")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run with --log_samples"):
        read_samples(tmp_path)
    with pytest.raises(ValueError, match=r"line 2: question 0 has an answer already"):
        read_samples(log(tmp_path / "twice", row(0, acc=1), row(0, acc=1)))
    with pytest.raises(ValueError, match="acc is 7: a score lies between 0 and 1"):
        read_samples(log(tmp_path / "graded", row(0, acc=7)))
    with pytest.raises(ValueError, match="is no sample of lmms-eval: it has no 'target'"):
        read_samples(log(tmp_path / "other", {"doc_id": 0}))
    cut = log(tmp_path / "cut", row(0, acc=1))
    cut.write_text(cut.read_text()[:-9])
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        read_samples(cut)
    log(tmp_path / "cut", row(0, acc=1), name="2_samples_task.jsonl")
    with pytest.raises(ValueError, match="several samples files, name one of them"):
        read_samples(tmp_path / "cut")
