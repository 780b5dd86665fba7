"""Questions from files and from the rendered task; faults are said in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenreduce.data.conversations import read_llava
from tokenreduce.data.items import Item, first_questions, heldout, read_questions
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.perturbation import perturbations
from tokenreduce.evaluation.question_sets import candidates, fingerprint

GOOD = {"image": "a.png", "question": "What is this?", "answer": "a cat"}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    return tmp_path


def write(folder, *rows):
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_questions(folder):
    path = write(
        folder,
        {**GOOD, "id": 7, "group": "animals", "options": ["a cat", "a dog"]},
        {**GOOD, "answer": ["a cat", "cat"], "paraphrase": "Which animal?"},
    )
    one, two = read_questions(path)
    assert (one.name, one.kind, one.options) == ("7", "animals", ("a cat", "a dog"))
    assert (two.name, two.kind, two.right_answers) == ("2", "question", ("a cat", "cat"))
    assert two.paraphrase == "Which animal?"
    assert one.picture().size == (8, 6)
    assert one.image == two.image


def test_names_that_are_false_are_names(folder):
    (item,) = read_questions(write(folder, {**GOOD, "id": 0, "group": 0, "paraphrase": ""}))
    assert (item.name, item.kind) == ("0", "0")
    assert item.paraphrase is None  # an empty one asks nothing
    (item,) = read_questions(write(folder, {**GOOD, "id": "", "group": None}))
    assert (item.name, item.kind) == ("1", "question")


def test_one_picture_has_one_name(folder):
    (folder / "b").mkdir()
    names = ("a.png", "./a.png", "b/../a.png")
    items = read_questions(write(folder, *({**GOOD, "image": name} for name in names)))
    assert {item.image for item in items} == {"a.png"}


def test_a_file_of_other_letters(folder):
    path = folder / "questions.jsonl"
    good = json.dumps({**GOOD, "answer": "Käse"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{good}\r\n".encode())  # as some editors save it
    assert read_questions(path)[0].answer == "Käse"
    path.write_bytes(f"{good}\n".encode() + f"{good}\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"questions\.jsonl:2: not UTF-8"):
        read_questions(path)


def test_a_picture_that_is_none_is_found_with_its_line(folder):
    (folder / "b.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r":2: image .*b\.png' is not a picture") as told:
        read_questions(write(folder, GOOD, {**GOOD, "image": "b.png"}))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "a.png", "prompt": "x", "answer": "y"}, r":1: no 'question'.*'prompt'"),
        ({**GOOD, "answer": ""}, ":1: no 'answer'"),
        ({**GOOD, "answer": 3}, ":1: 'answer' is no text: 3"),
        ({**GOOD, "options": "yes"}, ":1: 'options' is no text"),
        ({**GOOD, "image": "../a.png"}, ":1: image outside the folder"),
        ({**GOOD, "image": "/etc/passwd"}, ":1: image outside the folder"),
        ({**GOOD, "image": "b.png"}, ":1: missing image file"),
        ([1, 2], ":1: not an object"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(folder, row, message):
    with pytest.raises(ValueError, match=message) as told:
        read_questions(write(folder, row))
    assert "\n" not in str(told.value)


def test_files_that_are_none(folder):
    with pytest.raises(ValueError, match="no file"):
        read_questions(folder / "nothing.jsonl")
    with pytest.raises(ValueError, match="holds no question"):
        read_questions(write(folder))
    with pytest.raises(ValueError, match="no folder"):
        read_questions(write(folder, GOOD), folder / "pictures")
    (folder / "questions.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match=":1: not JSON"):
        read_questions(folder / "questions.jsonl")
    with pytest.raises(ValueError, match=":2: a second question with the id 'x'"):
        read_questions(write(folder, {**GOOD, "id": "x"}, {**GOOD, "id": "x"}))


def test_the_rendered_task_in_other_words():
    vocabulary = json.loads((checkpoint_dir() / "tokenizer.json").read_text())["model"]["vocab"]
    items = heldout(0, 40, 9)
    assert len({item.name for item in items}) == len(items)
    kinds = {item.kind for item in items if item.paraphrase}
    assert kinds == {item.kind for item in items}
    for item in items:
        assert item.paraphrase
        assert item.paraphrase != item.question
        words = set(item.paraphrase.replace("?", " ?").split())
        assert words <= set(vocabulary)
        # the words that carry the meaning are the same
        known = {
            *[
                "what",
                "is",
                "in",
                "the",
                "of",
                "on",
                "there",
                "a",
                "how",
                "many",
                "are",
                "where",
                "has",
                "written",
                "?",
            ]
        }
        assert words - known - {"object"} == (
            set(item.question.replace("?", " ?").split()) - known - {"object"}
        )


def test_candidates_are_what_a_kind_answers():
    items = heldout(0, 30, 9)
    found = candidates(items)
    assert set(found["exist"]) == {"yes", "no"}
    assert len(candidates(items, most=3)["read"]) == 3


def test_a_fingerprint_tells_sets_apart(folder):
    items = heldout(0, 2, 2)
    assert fingerprint(items) == fingerprint(heldout(0, 2, 2))
    assert fingerprint(items) != fingerprint(heldout(1, 2, 2))
    assert fingerprint(items) != fingerprint(items[:-1])
    path = write(folder, GOOD)
    before = fingerprint(read_questions(path))
    Image.new("RGB", (8, 6), "blue").save(folder / "a.png")
    assert fingerprint(read_questions(path)) != before


@pytest.mark.parametrize("more", [{"paraphrase": "Which?"}, {"options": ["a cat", "a dog"]}])
def test_every_field_that_is_asked_about_is_in_the_fingerprint(folder, more):
    before = fingerprint(read_questions(write(folder, GOOD)))
    assert fingerprint(read_questions(write(folder, {**GOOD, **more}))) != before


def test_a_picture_of_the_same_size_on_disk_is_another(folder):
    paths = [folder / f"{i}.bmp" for i in range(2)]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (8, 6), colour).save(path)
    items = [Item("a", path, "kind", "What?", "a") for path in paths]
    assert paths[0].stat().st_size == paths[1].stat().st_size
    assert fingerprint(items[:1]) != fingerprint(items[1:])


@pytest.mark.parametrize("name", ["shift", "jpeg"])
def test_a_changed_picture_is_made_when_it_is_asked_about(folder, name, monkeypatch):
    (item,) = read_questions(write(folder, GOOD))
    opened = []
    monkeypatch.setattr(Item, "picture", lambda self: opened.append(self))
    changed = perturbations[name](item)
    assert opened == []
    monkeypatch.undo()
    assert changed.picture().size == (8, 6)
    assert changed.picture().mode == "RGB"


def test_a_shift_moves_by_one_pixel():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    moved = np.asarray(perturbations["shift"](Item(0, pixels, "k", "q", "a")).picture())
    assert (moved[1:, 1:] == pixels[:-1, :-1]).all()
    assert (moved[0] == pixels[0]).all()


def test_first_questions_of_conversations(folder):
    path = folder / "rows.json"
    turns = [("human", "<image>\nWhat is this?"), ("gpt", "A cat."), ("human", "x"), ("gpt", "y")]
    rows = [
        {"id": "1", "image": "a.png", "conversations": [{"from": a, "value": b} for a, b in turns]},
        {"id": "2", "conversations": [{"from": a, "value": b} for a, b in turns[2:]]},
    ]
    path.write_text(json.dumps(rows))
    (item,) = first_questions(read_llava(path))
    assert (item.name, item.question, item.answer) == ("1", "What is this?", "A cat.")
    with pytest.raises(ValueError, match="no conversation"):
        first_questions(read_llava(path).select([1]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"image": "a.png", "quesion": "what?", "answer": "x"}',
            "no 'question'; it has 'quesion', did you mean 'question'?",
        ),
        ('{"image": "a.png", "question": "\\ud800?", "answer": "x"}', "half a character"),
        ('{"image": "a.png", "question": "?", "answer": ["x", "\\udfff"]}', "half a character"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_cannot_be_read_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_questions(tmp_path / "q.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-that-name/q.jsonl"])
def test_what_cannot_be_a_path_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"data\.path .* cannot be a path here"):
        read_questions(path)
    (tmp_path / "q.jsonl").touch()
    with pytest.raises(ValueError, match=r"data\.images .* cannot be a path here"):
        read_questions(tmp_path / "q.jsonl", path)
