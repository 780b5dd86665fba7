"""What tells the answers of one checkpoint from those of another, and where they lie."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tokenreduce import files
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.identity import folder_of, weights_of
from tokenreduce.inference.loaded import Loaded


def local(folder: Any, embedded: bool = False) -> Loaded:
    return cast(Loaded, SimpleNamespace(source=str(folder), embedded=embedded))


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(checkpoint_dir(), tmp_path / "ck")


def test_a_tensor_in_the_middle_was_trained_in_place(checkpoint, monkeypatch):
    monkeypatch.setattr(files, "STRIDE", 2**20)  # as if the file were larger: read in part
    path, before = checkpoint / "model.safetensors", weights_of(local(checkpoint))
    assert before == weights_of(local(checkpoint))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2**20] = bytes(2**20)  # one stride
    path.write_bytes(data)
    assert weights_of(local(checkpoint)) != before


@pytest.mark.parametrize("at", [0, 2**21, -1])
def test_a_small_file_is_read_whole(checkpoint, at):
    small = checkpoint / "small.safetensors"
    small.write_bytes(bytes(files.STRIDE))
    before = weights_of(local(checkpoint))
    data = bytearray(files.STRIDE)
    data[at] = 1
    small.write_bytes(data)
    assert weights_of(local(checkpoint)) != before


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer.json", "processor_config.json", "config.json"]
)
def test_what_makes_inputs_of_a_question_counts(checkpoint, name):
    before = weights_of(local(checkpoint))
    with (checkpoint / name).open("ab") as file:
        file.write(b"\n")
    assert weights_of(local(checkpoint)) != before


def test_what_decides_no_answer_does_not_count(checkpoint):
    before = weights_of(local(checkpoint))
    (checkpoint / "README.md").write_text("other")
    (checkpoint / "trainer_state.json").write_text("{}")
    assert weights_of(local(checkpoint)) == before


def test_checkpoints_of_one_name_have_a_folder_each(tmp_path, monkeypatch):
    for parent in "ab":
        (tmp_path / parent / "ck").mkdir(parents=True)
    one, two = (folder_of(tmp_path, local(tmp_path / p / "ck")) for p in "ab")
    assert one != two
    assert one.name.startswith("ck-")
    monkeypatch.chdir(tmp_path)
    assert folder_of(tmp_path, local("./b/../a/ck/")) == one
    assert folder_of(tmp_path, local(checkpoint_dir(), embedded=True)).name == "tiny"
    assert folder_of(tmp_path, local("org/name")).name == "org--name"
