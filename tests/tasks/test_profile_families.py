"""A profile of every family that has a kit: pictures of many sizes, answers it does not give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.quiet import quiet_transformers
from tokenreduce.data.conversations import read_llava
from tokenreduce.data.encoding import Encoder
from tokenreduce.profiling import ScheduleEvaluator, prompts_of
from tokenreduce.testing.checkpoints import write
from tokenreduce.testing.families import KITS

SIZES = ((56, 84), (84, 84), (112, 56))
ALONE = ("perception_lm",)
"""Families without batches of pictures in different numbers of tiles."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for i, size in enumerate(SIZES):
        Image.effect_noise(size, 60 + i).convert("RGB").save(folder / f"{i}.png")
        question = {"from": "human", "value": "<image>\nWhat is this ?"}
        answer = {"from": "gpt", "value": "word50"}
        lines.append({"image": f"{i}.png", "conversations": [question, answer]})
    path: Path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of processors
@pytest.mark.parametrize("name", KITS)
def test_a_family_is_apart_from_itself_only_when_reduced(
    name: str, rows: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with quiet_transformers():
        write(name, tmp_path)
        processor: Any = AutoProcessor.from_pretrained(tmp_path)
        model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).float().eval()
        prompts = prompts_of(read_llava(rows), Encoder(processor))
        batch = 1 if name in ALONE else len(SIZES)
        meter = ScheduleEvaluator(model, processor, prompts, "pyramid_drop", tokens=3, batch=batch)
        whole, less = meter.measure(()), meter.measure(((1, 0.25),))
    assert [p.picture for p in prompts] == [0, 1, 2]
    assert whole.same == 1
    assert whole.jsd < 1e-7
    assert less.jsd > 1e-4
    assert whole.nll is not None  # of an answer that an untrained model does not give
    assert whole.nll > 1
    lengths = sorted(len(p.inputs["input_ids"]) for p in prompts)
    assert sorted(v + t for v, t in meter.prices.counts.elements()) == lengths
    assert all(visual > 4 for visual, _ in meter.prices.counts)
