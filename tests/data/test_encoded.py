"""Rows that cannot be encoded: who says so, what takes their place, what is noted."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.families import processor, talk
from tokenreduce import files
from tokenreduce.data.conversations import Conversations, shapes_conversations
from tokenreduce.data.encoding import Collator, EncodedDataset, Encoder, Unusable

GOOD = (1, "What ?", "word50")
BAD = (1, "What <image> ?", "word50")
TURNS = [BAD, GOOD, BAD, BAD, (1, "Which ?", "word51"), BAD]


def told(index):
    return talk(TURNS[index], name=f"row{index}")


@pytest.fixture
def rows():
    return Conversations(len(TURNS), told)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(processor("llava"))


def noted(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def same(one, two):
    return set(one) == set(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_the_next_usable_row_takes_the_place(rows, encoder, tmp_path):
    data = EncodedDataset(rows, encoder, "skip", tmp_path / "log.jsonl")
    first, second = encoder(told(1)), encoder(told(4))
    assert not same(first, second)
    for _ in range(2):
        found = [data[i] for i in range(len(data))]
        assert len(found) == 6
        assert [same(x, first) for x in found] == [True, True, False, False, False, True]
        assert [same(x, second) for x in found] == [False, False, True, True, True, False]
        assert same(data[-1], first)
    log = noted(tmp_path / "log.jsonl")
    assert [row["name"] for row in log] == ["row0", "row2", "row3", "row5"]
    assert {row["reason"] for row in log} == {"placeholder in the text"}
    assert "'<image>'" in log[0]["detail"]


def test_a_row_is_noted_once_over_runs(rows, encoder, tmp_path):
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        data = EncodedDataset(rows, encoder, "skip", log)
        list(map(data.__getitem__, range(len(data))))
    assert len(noted(log)) == 4


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_note_whole_lines_and_each_row_once(how, encoder, tmp_path):
    log = tmp_path / "log.jsonl"
    size = 24
    rows = Conversations(size, mostly_bad)
    data = EncodedDataset(rows, encoder, "skip", log)
    loader = DataLoader(
        data,
        batch_size=4,
        num_workers=2,
        collate_fn=Collator(encoder.processor),
        multiprocessing_context=multiprocessing.get_context(how),
    )
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4] * 6
    names = [row["name"] for row in noted(log)]
    assert sorted(names) == sorted(f"row{i}" for i in range(size) if i % 6)


def mostly_bad(index):
    return talk(BAD if index % 6 else GOOD, name=f"row{index}")


def test_an_error_names_the_row(rows, encoder, tmp_path):
    data = EncodedDataset(rows, encoder, log=tmp_path / "log.jsonl")
    assert same(data[1], encoder(told(1)))
    with pytest.raises(ValueError, match=r"row2: placeholder in the text.*bad=skip") as caught:
        data[2]
    assert not isinstance(caught.value, Unusable)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_fault_of_the_program_is_not_skipped(rows):
    def broken(conversation):
        raise KeyError("slip")

    data = EncodedDataset(rows, broken, "skip")
    with pytest.raises(KeyError) as caught:
        data[3]
    assert caught.value.__notes__ == ["row 3: row3"]


def test_rows_that_changed_are_skipped_too(encoder):
    def read(index):
        if index == 0:
            raise Unusable("missing image file", "it was here")
        return told(1)

    data = EncodedDataset(Conversations(2, read), encoder, "skip")
    assert same(data[0], data[1])
    with pytest.raises(ValueError, match="row 0: missing image file"):
        EncodedDataset(Conversations(2, read), encoder)[0]


def test_no_usable_row(encoder):
    data = EncodedDataset(Conversations(3, lambda i: talk(BAD)), encoder, "skip")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no row of 3 is usable.*placeholder"):
            data[1]


def test_indices_and_arguments(rows, encoder):
    data = EncodedDataset(rows, encoder, "skip")
    for index in (6, -7):
        with pytest.raises(IndexError):
            data[index]
    with pytest.raises(ValueError, match="bad"):
        EncodedDataset(rows, encoder, "ignore")


def test_scenes_with_the_embedded_model():
    """The task that ships with the package, encoded as its own trainer's model reads it."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tokenreduce.embedded import checkpoint_dir

    made = AutoProcessor.from_pretrained(checkpoint_dir())
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_dir()).eval()
    rows = shapes_conversations(0, "heldout", size=8, questions=1, difficulty=0.5)
    data = EncodedDataset(rows, Encoder(made))
    batch = Collator(made)([data[i] for i in range(8)])
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    wanted = batch["labels"][:, 1:]
    right = (logits[:, :-1].argmax(-1) == wanted) | (wanted == -100)
    assert int(right.all(1).sum()) >= 7  # it answers 99.9 % of them, and ends where labels do
    ends = [row[row != -100][-1] for row in batch["labels"]]
    assert {int(end) for end in ends} == {made.tokenizer.eos_token_id}


def test_processes_that_note_a_row_at_one_time(encoder, tmp_path, monkeypatch):
    """Threads with files of their own stand for processes; they wait before they write."""
    log, start = tmp_path / "log.jsonl", threading.Barrier(6)
    log.write_text('{"name": "other", "row": 0}\nno JSON\n')

    def slowly(row, **options):
        time.sleep(0.02)
        return json.dumps(row, **options)

    monkeypatch.setattr(files, "json", SimpleNamespace(loads=json.loads, dumps=slowly))

    def note():
        start.wait()
        EncodedDataset(Conversations(2, [BAD, GOOD].__getitem__), tell, "skip", log)[0]

    def tell(turn):
        return encoder(talk(turn, name="row"))

    monkeypatch.setattr(EncodedDataset, "_name", lambda self, place: "row")
    threads = [threading.Thread(target=note) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text().count('"name": "row"') == 1
