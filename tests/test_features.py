"""Whole features from Python, in a process that has neither Hydra nor the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import sys
for name in ("hydra", "omegaconf"):
    sys.modules[name] = None  # an import of it fails
from pathlib import Path
import tokenreduce as tr
from tokenreduce.inference.loaded import load
from tokenreduce.inference.spec import ModelSpec
folder = Path(sys.argv[1])
loaded = load(ModelSpec(device="cpu"))
"""
LOOK = """
from tokenreduce.data.images import load_image
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.inference.look import look
picture = load_image(str(checkpoint_dir().parent / "example.png"))
seen = look(loaded, "what is in the red circle?", [picture], "fastv")
assert set(seen.answers) == {"full", "reduced"}
assert seen.report["visual_tokens"] == [144]
"""
EVALUATE = """
from tokenreduce.data.items import heldout
from tokenreduce.evaluation.asking import Protocol
from tokenreduce.evaluation.bars import Bars
from tokenreduce.evaluation.budget import schedule_at
from tokenreduce.evaluation.comparing import Level
from tokenreduce.evaluation.conditions import plan, spelled_out
from tokenreduce.evaluation.identity import folder_of, identity
from tokenreduce.evaluation.question_sets import candidates
from tokenreduce.evaluation.records import Store
from tokenreduce.evaluation.runner import Runner
from tokenreduce.evaluation.scoring import first_tokens
from tokenreduce.evaluation.shard import Shard
from tokenreduce.evaluation.table import collect, write
items = heldout(0, 2, 2)
schedule = schedule_at(loaded, items, 0.7, "single", {"layer": 2})
tested = spelled_out(tr.Recipe.parse({"strategy": "fastv", "scheduler": schedule}), loaded)
starts = {k: first_tokens(loaded.processor.tokenizer, a) for k, a in candidates(items).items()}
how = Protocol(batch=4, limit=4, match="exact", starts=starts)
store = Store(folder_of(folder, loaded))
store.begin(identity(loaded, items, how, "shapes", "sdpa"), {})
runner = Runner(loaded, items, how, store, Shard(), timed=0, followed=0, bars=Bars(False))
assert all(runner.run(one) for one in plan(tested, ["random"], 1, []))
level = Level(0.05, 0.05)
rows, _ = collect(folder, level)
assert [row["role"] for row in rows] == ["full", "baseline", "tested"]
assert rows[0]["flops_share"] == 1 and 0.6 < rows[2]["flops_share"] <= 0.7
assert all(path.is_file() for path in write(folder, rows, level, {}))
"""
BENCHMARK = """
from tokenreduce.benchmarking.candidates import candidates, schedules_at
from tokenreduce.benchmarking.rounds import Interleaved
from tokenreduce.benchmarking.subjects import subject
from tokenreduce.cost import shape_of
one = subject(ModelSpec(device="cpu"))
shape = shape_of(one.model.config)
(prompt, _) = one.prompts([32], 8, [1], 0)
schedules = schedules_at([0.6], {"name": "single", "layer": 2, "keep": 0.5}, shape, prompt.visual)
those = candidates({"fastv": tr.FastV(), "random": tr.Random()}, schedules)
rows = Interleaved(one.model, prompt, those).run(1, memory=False).rows()
assert [row["strategy"] for row in rows] == ["fastv", "random"]
assert all(row["asked_share"] == 0.6 and 0.5 < row["kept_share"] <= 0.6 for row in rows)
"""
PROFILE = """
from tokenreduce.data.encoding import Encoder
from tokenreduce.data.items import heldout
from tokenreduce.presets import load_schedule, write_preset
from tokenreduce.profiling import ScheduleEvaluator, conversation, prompts_of, sensitivity
questions = [conversation(item) for item in heldout(0, 2, 1)]
prompts = prompts_of(questions, Encoder(loaded.processor))
meter = ScheduleEvaluator(loaded.model, loaded.processor, prompts, "stride", "keep")
found = sensitivity(meter.measure, layers=(2,), keeps=(0.5,))
assert found.layers == (2,)
path = write_preset(folder, "mine", ((2, 0.5),))
assert load_schedule(path) == tr.Explicit(layers=(2,), keeps=(0.5,))
"""
TRAIN = """
from tokenreduce.training.trainer_arguments import arguments
from tokenreduce.training.parts import adapted, freeze
from tokenreduce.training.resuming import check_same, newest_whole
made = arguments({"max_steps": 1}, folder, measured=False, device="cpu")
assert made.max_steps == 1 and made.label_names == ["labels"]
freeze(loaded.model, ["vision_tower"])
assert adapted(loaded.model, {"name": "none"}) is loaded.model
check_same(folder, {"seed": 0, "model": "tiny"} | dict.fromkeys(
    ("data", "strategy", "scheduler", "peft", "positions", "logits", "min_tokens")))
assert newest_whole(folder) is None
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(LOOK, id="inference"),
        pytest.param(EVALUATE, id="evaluation"),
        pytest.param(BENCHMARK, id="benchmarking"),
        pytest.param(PROFILE, id="profiling"),
        pytest.param(TRAIN, id="training"),
    ],
)
def test_a_feature_needs_no_command_line(code: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
