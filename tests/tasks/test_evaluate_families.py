"""`task=evaluate` on a checkpoint of every family, with pictures of several sizes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenreduce.config import compose
from tokenreduce.tasks import evaluate as task
from tokenreduce.testing.checkpoints import write
from tokenreduce.testing.families import KITS

ASKED = "What is this?", "How many are there in the picture?", "Which one?"
ATTENTION = {"paligemma2": "eager"}
"""What transformers itself asks for."""
SIZES = (64, 96), (120, 60), (90, 90)


def questions(folder: Path) -> Path:
    rng, rows = np.random.default_rng(0), []
    for number, size in enumerate(SIZES):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows += [
            {"image": f"{number}.png", "question": text, "answer": "one", "paraphrase": f"{text} ?"}
            for text in ASKED[: 1 + number % 2]
        ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_there_are_families() -> None:
    assert len(KITS) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("family", KITS)
def test_every_family_is_asked(family: str, tmp_path: Path) -> None:
    model, path = write(family, tmp_path / "model"), questions(tmp_path)
    config = compose(
        [
            "task=evaluate", "device=cpu", f"model.id={model}", "data=questions",
            f"data.path={path}", "strategy=stride", "scheduler=single", "scheduler.layer=2",
            "scheduler.keep=0.4", "task.batch=3", "task.seeds=1",
            "task.baselines=[random,downsample]",
            "task.changes=[shift]", "task.timed=0", "task.followed=2", "task.progress=false",
            "max_new_tokens=3", f"attention={ATTENTION.get(family, 'sdpa')}",
        ]
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = task.evaluate(config, tmp_path / "out")
    rows = {(row["role"], (row["strategy"] or {}).get("name")): row for row in found["table"]}
    stride = rows["baseline", "stride"]
    assert stride["questions"] == 4
    assert stride["pictures"] == 3
    assert 0.3 < stride["flops_share"] < 1
    assert stride["flops_share"] == rows["baseline", "random"]["flops_share"]
    told = [note for note in found["notes"] if note.startswith("downsample")]
    small = rows.get(("baseline", "downsample"))
    assert told or small is not None
    if small is not None:  # at about the same cost
        assert small["flops_share"] < 1


def test_smaller_pictures_are_a_strategy(tmp_path: Path) -> None:
    """They act before the model; in it nothing is reduced, and yet something is tested."""
    model, path = write("qwen2_vl", tmp_path / "model"), questions(tmp_path)
    config = compose(
        [
            "task=evaluate", "device=cpu", f"model.id={model}", "data=questions",
            f"data.path={path}", "strategy=downsample", "scheduler.keep=0.4", "task.batch=3",
            "task.baselines=[random,downsample]", "task.seeds=1", "task.changes=[]", "task.timed=0",
            "task.followed=0", "task.looks=0", "task.progress=false", "max_new_tokens=3",
        ]
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = task.evaluate(config, tmp_path / "out")
    rows = {(row["strategy"] or {}).get("name"): row for row in found["table"]}
    assert set(rows) == {None, "random", "downsample"}
    assert found["tested"].startswith("downsample-")
    assert 0.3 < rows["downsample"]["flops_share"] < 0.8
    assert "downsample: is in the table as a baseline" in found["notes"]
