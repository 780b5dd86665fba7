"""Checkpoints of ours have the names of weights that published ones have, and lose no bit by it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from tests.quiet import quiet_transformers
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.inference.naming import name_as_published, rename
from tokenreduce.testing.models import FAMILIES

INNER = "vision_tower.vision_model."


@pytest.fixture(autouse=True)
def _quiet_transformers():
    with quiet_transformers():
        yield


def names(folder: Path) -> set[str]:
    return set().union(*(load_file(path) for path in folder.glob("*.safetensors")))


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "gemma3"])
@pytest.mark.parametrize("size", ["50GB", "200KB"])
def test_towers_are_named_as_published_and_read_again(
    tmp_path: Path, family: str, size: str
) -> None:
    """In one file and in several; transformers reads them as it reads its own."""
    model = FAMILIES[family].model()
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert not any(INNER in name for name in names(tmp_path))  # what transformers writes
    name_as_published(tmp_path, model.config)
    found = names(tmp_path)
    tower = {name for name in found if "vision_tower." in name}
    assert len(tower) > 10
    assert all(name.startswith((INNER, f"model.{INNER}")) for name in tower)
    for index in tmp_path.glob("*.index.json"):
        assert set(json.loads(index.read_text())["weight_map"]) == found
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    state = again.state_dict()
    assert all(torch.equal(state[name], x) for name, x in model.state_dict().items())
    name_as_published(tmp_path, model.config)  # and once more changes nothing
    assert names(tmp_path) == found


def test_other_towers_keep_their_names(tmp_path: Path) -> None:
    model = FAMILIES["qwen2_vl"].model()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    name_as_published(tmp_path, model.config)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_renamed_file_holds_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: dict[str, Any] = {"a": torch.arange(5), "b": torch.ones(2, 3).half()}
    save_file(tensors, path, {"format": "pt"})
    rename(path, lambda name: f"longer.{name}" if name == "a" else name)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("longer.a"), tensors["a"])
        assert torch.equal(file.get_tensor("b"), tensors["b"])
        assert set(file.keys()) == {"longer.a", "b"}


def test_the_embedded_checkpoint_is_named_as_published() -> None:
    tower = {name for name in names(checkpoint_dir()) if "vision_tower." in name}
    assert tower
    assert all(name.startswith(INNER) for name in tower)


def test_what_a_training_exports_is_named_as_published(tmp_path: Path) -> None:
    """The weights of the best checkpoint, too, which are copied as the trainer wrote them."""
    from tokenreduce.training.resuming import export

    model = FAMILIES["llava"].model()
    (tmp_path / "best").mkdir()
    model.save_pretrained(tmp_path / "best")
    trainer = SimpleNamespace(
        args=SimpleNamespace(should_save=True), model=model, save_model=model.save_pretrained
    )
    processor = SimpleNamespace(save_pretrained=lambda folder: None)
    for best in (None, tmp_path / "best"):
        export(trainer, processor, best, tmp_path / "checkpoint")
        found = names(tmp_path / "checkpoint")
        assert {n for n in found if "vision_tower." in n} == {n for n in found if INNER in n}
        assert any(INNER in name for name in found)
