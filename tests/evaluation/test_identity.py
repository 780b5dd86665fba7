"""What tells the answers of one checkpoint from those of another, and where they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import load_file, save_file

from tokenreduce import files
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.identity import folder_of, weights_of
from tokenreduce.inference.loaded import Loaded

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("stride", [files.STRIDE, 2**30])
def test_names_and_order_of_weights_do_not_count(checkpoint, monkeypatch, stride):
    """Releases of transformers name one weight differently; sharding spreads them over files."""
    monkeypatch.setattr(files, "STRIDE", stride)
    path, before = checkpoint / "model.safetensors", weights_of(local(checkpoint))
    state = load_file(path)
    plain = {
        name.replace("vision_tower.vision_model.", "vision_tower."): state[name] for name in state
    }
    assert plain.keys() != state.keys()
    save_file(plain, path)
    assert weights_of(local(checkpoint)) == before
    path.unlink()
    names = sorted(plain)
    for i, part in enumerate((names[5:], names[:5])):
        save_file({f"model.{n}": plain[n] for n in part}, checkpoint / f"model-{i}.safetensors")
    assert weights_of(local(checkpoint)) == before


def test_numbers_types_and_places_of_weights_count(checkpoint, monkeypatch):
    monkeypatch.setattr(files, "STRIDE", 2**30)  # read whole
    path = checkpoint / "model.safetensors"
    seen = {weights_of(local(checkpoint))}
    state = load_file(path)
    norms = [name for name in state if name.endswith("layernorm.weight")][:2]
    swapped = state | {norms[0]: state[norms[1]], norms[1]: state[norms[0]]}
    changed = state | {norms[0]: state[norms[0]] + 1}
    typed = state | {norms[0]: state[norms[0]].float()}
    fewer = {name: value for name, value in state.items() if name != norms[0]}
    for other in (swapped, changed, typed, fewer):
        save_file(other, path)
        seen.add(weights_of(local(checkpoint)))
    assert len(seen) == 5


def test_the_leaderboard_is_of_the_weights_that_ship():
    table = json.loads((ROOT / "docs/results/leaderboard.json").read_text())
    assert table["head"]["identity"]["weights"] == weights_of(local(checkpoint_dir()))
