"""Training: every stage runs, resumes to the bit, and writes what the Auto classes load."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from tokenreduce_tiny.curriculum import Curriculum, at_level, blend_weights
from tokenreduce_tiny.optim import MuonAdamW, build_schedule, orthogonalise
from tokenreduce_tiny.pretrain import pretrain
from tokenreduce_tiny.stage import StageTrainer, newest_checkpoint

from tokenreduce.cli import run as run_task
from tokenreduce.config import compose
from tokenreduce.data import TYPES

STEPS = 6


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """The shipped recipe, made small: a 2-layer model, six steps a stage, four images a step."""
    small = compose(["task=pretrain"])
    small.task.update({"log_every": 1, "save_every": 2})
    small.task.evaluate.update({"every": 4, "images": 2, "questions": 3})
    small.task.assess.update({"images": 3, "questions": 3, "blind_images": 2})
    for stage in small.task.stages.values():
        stage.update({"steps": STEPS, "images": 4, "rate": [[0, 0.5], [1, 1], [STEPS, 0]]})
    small.task.stages.language.questions = 3
    # A gate that opens at once, so that the interrupted run has a curriculum to remember.
    small.task.stages.language.curriculum.update({"gate": -1.0, "patience": 1, "step": 0.2})
    size = {"width": 32, "feed_forward": 64, "layers": 2, "heads": 2}
    small.task.architecture.vision.update(size)
    small.task.architecture.text.update(size)
    return small


@pytest.fixture(scope="module")
def whole(config: DictConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = pretrain(config, folder)
    assert result["bytes"] < 6_000_000
    return folder


def test_every_stage_runs_and_is_logged(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for name in ("tower", "align", "language"):
        own = [row for row in rows if row["stage"] == name]
        assert [row["step"] for row in own] == [1, 2, 3, 4, 5, 6]
        assert [row["step"] for row in own if "heldout" in row] == [4, 6]
        assert all(math.isfinite(row["loss"]) for row in own)
    assert set(rows[-1]["heldout"]) <= {*TYPES, "macro"}
    assert rows[-1]["level"] == pytest.approx(0.8)


def test_stages_train_what_they_should(whole: Path, config: DictConfig) -> None:
    tower, align, language = (
        load_file(whole / f"{name}.safetensors") for name in ("tower", "align", "language")
    )
    moved = {key for key in align if not torch.equal(align[key], tower[key])}
    assert moved
    trained = ("projector", "embed_tokens", "language_model.norm")
    assert all(any(part in key for part in trained) for key in moved)
    moved = {key for key in align if not torch.equal(align[key], language[key])}
    assert not any("vision_tower" in key for key in moved)
    assert {key for key in align if "language_model.layers" in key} <= moved


def test_a_killed_run_resumes_to_the_same_weights(
    whole: Path, config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = StageTrainer.compute_loss

    def killed(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.stage.name == "language" and self.state.global_step == 5:  # one after a checkpoint
            raise KeyboardInterrupt
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path)
    monkeypatch.setattr(StageTrainer, "compute_loss", honest)
    # A checkpoint whose writing was cut short is passed over.
    (tmp_path / "language" / "checkpoint-5").mkdir()
    newest = newest_checkpoint(tmp_path / "language")
    assert newest is not None
    assert newest.name == "checkpoint-4"
    pretrain(config, tmp_path)
    first, second = (load_file(folder / "language.safetensors") for folder in (whole, tmp_path))
    assert first.keys() == second.keys()
    for key, weight in first.items():
        assert torch.equal(weight, second[key]), key
    logs = [
        [
            {**json.loads(line), "seconds": 0}
            for line in (folder / "log.jsonl").read_text().splitlines()
        ]
        for folder in (whole, tmp_path)
    ]
    assert logs[0] == logs[1]


def test_the_assessment_is_written_with_its_circumstances(whole: Path) -> None:
    report = json.loads((whole / "assessment.json").read_text())
    assert report["questions"] == 9
    assert set(report["generated"]["types"]) == set(TYPES)
    assert set(report["all_visual_tokens_dropped_at_layer"]) == {"none", "0", "1"}
    assert {"torch", "transformers", "python"} <= set(report["versions"])


def test_another_model_is_refused(config: DictConfig, tmp_path: Path) -> None:
    other = OmegaConf.merge(config, {"model": {"name": "llava_7b"}})
    with pytest.raises(ValueError, match="model=llava_7b cannot be trained from nothing"):
        pretrain(other, tmp_path)


def test_the_command_line_knows_the_task_before_it_is_imported() -> None:
    """Its option is there, its numbers are checked, and it goes on in its folder."""
    code = (
        "import sys; from tokenreduce.cli import find_task; task = find_task('pretrain');"
        "print(task, task.resumes, task.least, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = run.stdout.strip()
    assert said.startswith("tokenreduce_tiny.pretrain:pretrain True")
    assert said.endswith("False")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.threads=0", "task.threads must be a whole number of at least 1"),
        ("task.resume=3", "task.resume must be true or false"),
    ],
)
def test_wrong_options_are_refused(word: str, message: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tokenreduce", "task=pretrain", word]
    run = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr


def test_the_command_line_runs_it(config: DictConfig, tmp_path: Path) -> None:
    """One step a stage, through the same function as `tokenreduce` calls."""
    small = config.copy()
    for stage in small.task.stages.values():
        stage.steps = 1
    numbers = run_task(small, tmp_path)
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "result.json").read_text())["bytes"] == numbers["bytes"]


def test_curriculum_rises_only_while_every_watched_type_is_well() -> None:
    curriculum = Curriculum(("read", "count"), watch=["read"], patience=0, level=0.0, step=0.5)
    well, badly = torch.tensor([[9.0, 0], [10, 10]]), torch.tensor([[1.0, 10], [10, 10]])
    curriculum.observe(1, 1.0, well)
    assert curriculum.level == 0.5
    for step in range(2, 5):
        curriculum.observe(step, 1.0, badly)
    assert curriculum.level == 1.0  # rose once more while the running accuracy was still above
    later = Curriculum(("read", "count"), watch=["read"])
    later.restore(json.loads(json.dumps(curriculum.state())))
    assert later.state() == curriculum.state()


def test_what_is_asked_and_shown_follows_from_the_level() -> None:
    asked = [
        {"level": 0, "read": 1.0, "colour_at": 1.0},
        {"level": 0.5, "read": 2.0},
        {"level": 1, "read": 2.0, "left_of": 4.0},
    ]
    assert blend_weights(asked, 0.25) == {"read": 1.5, "colour_at": 0.5, "left_of": 0.0}
    assert blend_weights(asked, 1.0) == {"read": 2.0, "colour_at": 0.0, "left_of": 4.0}
    assert [at_level([[0, 6], [0.5, 20]], level) for level in (0, 0.25, 0.5, 1)] == [6, 13, 20, 20]


def test_orthogonalise_flattens_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        spectrum = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
        assert spectrum.min() > 0.5
        assert spectrum.max() < 1.3


def test_adamw_part_agrees_with_torch() -> None:
    start = torch.linspace(-1, 1, 12).view(3, 4)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}
    first, second = (
        MuonAdamW([{"params": [ours], **settings}]),
        torch.optim.AdamW([theirs], **settings),
    )
    for _ in range(5):
        for weight, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_muon_part_agrees_with_torch() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    start = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    first = MuonAdamW([{"params": [ours], "lr": 0.01, "weight_decay": 0.1, "muon": True}])
    second = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for weight, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=5e-3)  # torch's iterates in bfloat16


def test_schedule_is_linear_between_its_knots() -> None:
    optimizer = MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}])
    schedule = build_schedule(optimizer, [[0, 0.1], [9, 1], [60, 1], [100, 0]])
    share = schedule.lr_lambdas[0]
    assert [round(share(step), 3) for step in (0, 9, 60, 80, 100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
