"""Checkpoints of a training that is killed: what was there before can still be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenreduce as tr
from tests.training.loops import make, run
from tokenreduce.checkpoint import FILE
from tokenreduce.integrations.trainer import follow
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]


def saved(model, folder, keep=0.5):
    with tr.reduce(model, "random", tr.Single(2, keep)) as reduction:
        with torch.no_grad():
            model(**batch(LLAVA, (1,)).inputs)
        return reduction.save(folder)


def fail(*_, **__):
    raise OSError("no space left on device")


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, where):
    model = LLAVA.model()
    old = saved(model, tmp_path).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, where, fail)
        with pytest.raises(OSError, match="no space left"):
            saved(model, tmp_path, keep=0.25)
    assert (tmp_path / FILE).read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == [FILE]  # nor half of a new one
    with tr.load(model, tmp_path) as reduction:
        assert reduction.scheduler == tr.Single(2, 0.5)
        model(**batch(LLAVA, (1,)).inputs)


KILLED = """
import os, sys, tokenreduce as tr
from tokenreduce.testing.models import FAMILIES
where = sys.argv[2]
setattr(os, where, lambda *_: os._exit(9))  # as a kill: nothing is tidied up
tr.reduce(FAMILIES["llama"].model(), "random", tr.Single(2, 0.25)).save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save(tmp_path):
    """The process ends between writing and renaming; what it leaves does not matter."""
    model = FAMILIES["llama"].model()
    tr.reduce(model, "none").save(tmp_path)
    old = (tmp_path / FILE).read_bytes()
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path, "replace"], check=False)
    assert ended.returncode == 9
    assert (tmp_path / FILE).read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2  # with the new one's draft
    fresh = FAMILIES["llama"].model()
    tr.load(fresh, tmp_path).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "damage", ["missing", *(pytest.param(d, marks=pytest.mark.slow) for d in ("half", "empty"))]
)
def test_a_newest_checkpoint_without_its_reduction(tmp_path, damage):
    """Training goes on from it, as the script says what reduces; `load` says what is wrong."""
    weights = {}
    for name in ("whole", "killed"):
        model = LLAVA.model()
        folder = tmp_path / name
        options = {"steps": 3, "save_strategy": "steps", "save_steps": 1}
        with tr.reduce(model, "random", tr.Single(2, 0.5)) as reduction:
            loop, step = make(model, folder, images=(1, 0), **options)
            follow(loop, reduction)
            if name == "whole":
                run(loop, step)
            else:
                loop.args.max_steps = 2
                run(loop, step)
                newest, before = (folder / f"checkpoint-{n}" for n in (2, 1))
                _damage(newest / FILE, damage)
                state = type(model).from_pretrained(newest).state_dict()  # see docs/training.md
                model.load_state_dict(state)
                loop, step = make(model, folder, images=(1, 0), **options)
                follow(loop, reduction)
                loop.train(resume_from_checkpoint=str(newest))
        weights[name] = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert all(torch.equal(x, weights["killed"][n]) for n, x in weights["whole"].items())
    with pytest.raises((FileNotFoundError, ValueError), match=r"no tokenreduce|broken") as refusal:
        tr.load(model, newest)
    assert "\n" not in str(refusal.value)
    for folder in (before, tmp_path / "killed" / "checkpoint-3"):
        with torch.no_grad(), tr.load(model, folder) as reduction:
            assert reduction.scheduler == tr.Single(2, 0.5)
            model(**batch(LLAVA, (1,)).inputs)


def _damage(path: Path, damage: str) -> None:
    text = path.read_text()
    json.loads(text)
    path.unlink()
    if damage != "missing":
        path.write_text(text[: len(text) // 2] if damage == "half" else "")
