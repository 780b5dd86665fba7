"""`task=train`: a run, a killed run, adapters, two processes, data on disk, wrong options."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, TrainerCallback

import tokenreduce as tr
from tokenreduce.config import compose
from tokenreduce.tasks import train as task
from tokenreduce.training import resuming as checkpoints
from tokenreduce.training.resuming import newest_whole

STEPS = 4
SMALL = [
    "task=train", "device=cpu", f"trainer.max_steps={STEPS}", "trainer.eval_steps=2",
    "trainer.save_steps=2", "trainer.logging_steps=1", "trainer.learning_rate=1e-3",
    "trainer.per_device_train_batch_size=2", "data.questions=1", "task.progress=false",
]  # fmt: skip
SHAPES = ["data.measured=2"]


def run(folder: Path, *more: str, shapes: bool = True) -> dict[str, Any]:
    return task.train(compose([*SMALL, *(SHAPES if shapes else []), *more]), folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_a_run_says_how_it_went(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    assert result["steps"] == STEPS
    assert result["logits"] == "text"
    assert math.isfinite(result["loss"]["last"])
    assert math.isfinite(result["held_out_loss"]["best"])
    assert 0.4 < result["kept_share"] < 0.5  # 144, 72, 36, 18 tokens in two layers each
    assert result["flops_share"] < 0.7
    assert result["parameters"]["trained"] == result["parameters"]["all"] > 1e6
    assert result["skipped"]["rows"] == 0
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    with Image.open(result["curve"]) as curve:
        assert curve.width > 400


def test_what_is_exported_loads_with_its_reduction(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    model = AutoModelForImageTextToText.from_pretrained(result["checkpoint"])
    reduction = tr.load(model, result["checkpoint"])
    assert repr(reduction.strategy) == "PyramidDrop()"
    with pytest.warns(tr.ReductionWarning, match="without having reduced"):
        reduction.remove()
    best = result["best"]
    assert best in ("checkpoint-2", "checkpoint-4")
    mine, theirs = weights(folder / "checkpoint"), weights(folder / "checkpoints" / best)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


class Killed(TrainerCallback):  # type: ignore[misc]
    """Dies in the middle of the third step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_a_killed_run_goes_on_to_the_same_weights(
    broken: bool, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    folder, _ = whole
    follow = task.follow
    with monkeypatch.context() as patch:
        patch.setattr(
            task, "follow", lambda trainer, r: (follow(trainer, r), trainer.add_callback(Killed()))
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert newest_whole(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-2"
    if broken:  # killed once more, while the next checkpoint was written
        part = tmp_path / "checkpoints" / "checkpoint-4"
        part.mkdir()
        (part / "model.safetensors").write_bytes(b"half")
        (part / checkpoints.STATE).write_text('{"global_st')
    result = run(tmp_path)
    assert result["resumed_from"] == "checkpoint-2"
    for name in ("checkpoint-2", "checkpoint-4"):
        mine, theirs = (weights(x / "checkpoints" / name) for x in (tmp_path, folder))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in log if "eval_loss" in row] == [2, 4]


def cut(path: Path) -> None:
    """As a full disk or a power cut leaves it: the name is there, a part of the content is not."""
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 3)])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_torn_checkpoint_is_passed_over_and_said(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole[0] / "checkpoints", folder)
    assert newest_whole(folder) == folder / "checkpoint-4"
    cut(folder / "checkpoint-4" / name)
    said = rf"checkpoint-4 \({name} is cut short\) cannot be gone on from: going on from check"
    with pytest.warns(UserWarning, match=said):
        assert newest_whole(folder) == folder / "checkpoint-2"
    cut(folder / "checkpoint-2" / name)
    with pytest.warns(UserWarning, match=r"checkpoint-4 .*, checkpoint-2 .*training begins anew"):
        assert newest_whole(folder) is None


def test_checkpoints_in_parts_need_all_of_them(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(whole[0] / "checkpoints" / "checkpoint-4", folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert checkpoints.fault(folder) is None
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert checkpoints.fault(folder) == "no model-2.safetensors"
    index.write_text("{")
    assert checkpoints.fault(folder) == f"{index.name} is broken"
    index.unlink()
    assert checkpoints.fault(folder, ("tokenreduce.safetensors",)) == "no tokenreduce.safetensors"
    (folder / checkpoints.STATE).write_bytes(b"\x80")
    assert checkpoints.fault(folder) == "no whole trainer_state.json"


@pytest.mark.slow
def test_a_training_goes_on_from_before_a_torn_checkpoint(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """To the same weights; and a best checkpoint that is torn is not what gets exported."""
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    wanted = weights(whole[0] / "checkpoints" / "checkpoint-4")
    cut(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    with pytest.warns(UserWarning, match="going on from checkpoint-2"):
        result = run(tmp_path)
    assert result["resumed_from"] == "checkpoint-2"
    found = weights(tmp_path / "checkpoints" / "checkpoint-4")
    assert all(torch.equal(found[name], x) for name, x in wanted.items())
    state = tmp_path / "checkpoints" / "checkpoint-4" / checkpoints.STATE
    best = tmp_path / "checkpoints" / "checkpoint-2"
    said = json.loads(state.read_text()) | {"best_model_checkpoint": str(best)}
    state.write_text(json.dumps(said))
    cut(best / "model.safetensors")
    with pytest.warns(UserWarning, match=r"the best checkpoint, .*checkpoint-2, is not whole"):
        assert run(tmp_path)["best"] is None
    found = weights(tmp_path / "checkpoint")
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


def test_a_finished_run_is_not_trained_again(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, first = whole
    before = weights(folder / "checkpoint")
    again = run(folder)
    assert again["steps"] == STEPS
    assert again["resumed_from"] == "checkpoint-4"
    assert again["best"] == first["best"]
    after = weights(folder / "checkpoint")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_adapters_train_alone_and_go_on(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = ("peft=lora", "peft.rank=2", "strategy=random", "seed=1", "data.measured=0")
    first = run(tmp_path / "a", *options)
    assert first["parameters"]["trained"] < 0.05 * first["parameters"]["all"]
    names = load_file(tmp_path / "a" / "checkpoint" / "adapter_model.safetensors")
    assert all("language_model.layers" in name and "lora_" in name for name in names)
    run(tmp_path / "a", *options)  # ended: exported again, though its adapters are not loaded
    kept = load_file(tmp_path / "a" / "checkpoint" / "adapter_model.safetensors")
    assert all(torch.equal(names[name], kept[name]) for name in names)
    assert max(float(x.abs().max()) for name, x in kept.items() if "lora_B" in name) > 0
    run(tmp_path / "b", *options)
    for part in (tmp_path / "b" / "checkpoints").glob("checkpoint-4/*"):
        part.unlink()  # the newest is lost
    again = run(tmp_path / "b", *options)
    assert again["resumed_from"] == "checkpoint-2"
    other = load_file(tmp_path / "b" / "checkpoint" / "adapter_model.safetensors")
    assert all(torch.equal(names[name], other[name]) for name in names)


@pytest.mark.slow
def test_a_learned_strategy_trains_with_the_model_and_goes_on(tmp_path: Path) -> None:
    options = ("strategy=scorer_mlp", "strategy.hidden=8", "strategy.gate=soft")
    run(tmp_path / "a", *options)
    first, last = (
        load_file(tmp_path / "a" / "checkpoints" / f"checkpoint-{n}" / "tokenreduce.safetensors")
        for n in (2, 4)
    )
    assert any(not torch.equal(first[name], last[name]) for name in first)
    run(tmp_path / "b", *options)
    newest = tmp_path / "b" / "checkpoints" / "checkpoint-4"
    (newest / "tokenreduce.json").unlink()  # killed before the strategy was saved
    with pytest.warns(UserWarning, match=r"checkpoint-4 \(no tokenreduce.json\) cannot be gone on"):
        assert run(tmp_path / "b", *options)["resumed_from"] == "checkpoint-2"
    again = load_file(newest / "tokenreduce.safetensors")
    assert all(torch.equal(again[name], last[name]) for name in last)


def test_another_training_in_the_same_folder_is_refused(whole: Any) -> None:
    folder, _ = whole
    with pytest.raises(ValueError, match="training with another strategy: use another"):
        run(folder, "strategy=random", "scheduler=pyramid")
    with pytest.raises(ValueError, match="training with another peft, seed"):
        run(folder, "peft=lora", "seed=3")
    with pytest.raises(ValueError, match=r"holds checkpoints: use another hydra\.run\.dir"):
        run(folder, "task.resume=false")


@pytest.mark.slow
def test_frozen_parts_stay(tmp_path: Path) -> None:
    result = run(tmp_path, "task.frozen=[vision_tower,projector]", "strategy=none")
    assert result["kept_share"] == 1
    start = AutoModelForImageTextToText.from_pretrained(tr.embedded.checkpoint_dir()).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(result["checkpoint"]).state_dict()
    moved = {name for name, x in start.items() if not torch.equal(x.float(), after[name].float())}
    assert moved
    assert all("language_model" in name or "lm_head" in name for name in moved)


def rows_on_disk(folder: Path, number: int = 6) -> Path:
    rows = []
    for i in range(number):
        Image.new("RGB", (96, 96), (40 * i, 10, 90)).save(folder / f"{i}.png")
        turns = [
            {"from": "human", "value": "<image>\nwhat is in the red circle ?"},
            {"from": "gpt", "value": "A"},
        ]
        rows.append({"id": f"row {i}", "image": f"{i}.png", "conversations": turns})
    rows[2]["image"] = "nowhere.png"
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    path = rows_on_disk(tmp_path)
    data = [f"data.path={path}", "data.holdout=0.2", "~data.questions"]
    options = [x for x in SMALL if not x.startswith("data.")]
    with pytest.raises(ValueError, match=r"nowhere\.png"):
        task.train(compose([*options, "data=llava", *data[:2]]), tmp_path / "a")
    config = compose([*options, "data=llava", *data[:2], "data.bad=skip"])
    result = task.train(config, tmp_path / "b")
    assert result["skipped"]["rows"] == 1
    assert len(result["skipped"]["names"]) == 1
    assert result["rows"] == {"train": 4, "measured": 1}
    config.trainer.max_steps = -1
    config.trainer.num_train_epochs = 2
    assert task.train(config, tmp_path / "c")["steps"] == 4


WRONG = {
    "trainer.learning_rat": (["+trainer.learning_rat=1"], "did you mean 'learning_rate'"),
    "fixed": (["+trainer.seed=3"], "trainer.seed is what seed stands for"),
    "refused": (["trainer.lr_scheduler_type=steep"], "the trainer refuses its options"),
    "frozen": (["task.frozen=[vison_tower]"], "no parameter has that in its name"),
    "nothing": (["task.frozen=[model]"], "leaves nothing to train"),
    "no steps": (["trainer.max_steps=0"], r"trainer\.max_steps must be .* -1 .*, not 0"),
    "fewer steps": (["trainer.max_steps=-5"], r"trainer\.max_steps must be .*, not -5"),
    "no rows": (["trainer.per_device_train_batch_size=0"], "batch_size must be .*, not 0"),
    "no saves": (["trainer.save_steps=0"], "save_steps must be .*, not 0"),
    "no rate": (["trainer.learning_rate=-1"], "learning_rate must be a number above 0, not -1"),
    "no epochs": (["trainer.num_train_epochs=0"], "num_train_epochs must be a number above 0"),
    "checkpointing": (["+trainer.gradient_checkpointing=true"], "trainer.activation_checkpoint"),
    "evaluation": (["+trainer.eval_strategy=epoch"], "data.holdout"),
    "module": (["peft=lora", "peft.also=[nowhere]"], "peft.also=nowhere: no module has that name"),
    "gpu": (["device=cuda:1"], "cuda:1"),
    "smoothing": (["trainer.label_smoothing_factor=0.1", "logits=text"], "use logits=full"),
    "targets": (["peft=lora", "peft.targets=nowhere"], "peft.targets=nowhere"),
    "rank": (["peft=lora", "peft.rank=0"], r"peft\.rank must be .*, not 0"),
    "dropout": (["peft=lora", "peft.dropout=1"], r"peft\.dropout must be .*, not 1"),
    "alpha": (["peft=lora", "peft.alpha=0"], r"peft\.alpha must be .*, not 0"),
    "pictures": (["strategy=downsample"], "acts on pictures"),
}


@pytest.mark.parametrize("which", WRONG)
def test_wrong_options_are_refused_in_one_line(which: str, tmp_path: Path) -> None:
    options, message = WRONG[which]
    with pytest.raises((ValueError, TypeError), match=message):
        run(tmp_path, *options)
    assert not any(tmp_path.iterdir())  # a refused training leaves nothing


@pytest.mark.parametrize("data", ["llava", "folder"])
def test_data_without_a_path_is_refused(data: str, tmp_path: Path) -> None:
    options = [x for x in SMALL if not x.startswith("data.")]
    with pytest.raises(ValueError, match=r"needs a path: add data\.path"):
        task.train(compose([*options, f"data={data}"]), tmp_path)


@pytest.mark.slow
def test_label_smoothing_takes_all_logits(tmp_path: Path) -> None:
    options = ("strategy=none", "trainer.label_smoothing_factor=0.1")
    result = run(tmp_path, *options)
    assert result["logits"] == "full"
    # the shipped model answers rightly, so that hardly more is left than what is smoothed; labels
    # that are not shifted would be the tokens that it has just read
    assert result["loss"]["first"] < 5


@pytest.mark.slow
def test_a_curriculum_begins_with_everything(tmp_path: Path) -> None:
    result = run(tmp_path, "scheduler=curriculum", "trainer.eval_steps=1")
    rows = [json.loads(line) for line in Path(result["log"]).read_text().splitlines()]
    shares = [row["tokenreduce/kept_share"] for row in rows if "loss" in row]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 0.7


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tokenreduce",
        *SMALL, *SHAPES, f"hydra.run.dir={tmp_path / 'two'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["processes"] == 2
    one = run(tmp_path / "one", "trainer.per_device_train_batch_size=4")
    assert result["loss"]["first"] == pytest.approx(one["loss"]["first"], rel=2e-2)
    start = AutoModelForImageTextToText.from_pretrained(tr.embedded.checkpoint_dir()).state_dict()
    ends = [
        AutoModelForImageTextToText.from_pretrained(tmp_path / name / "checkpoint").state_dict()
        for name in ("one", "two")
    ]
    ways = [torch.cat([(e[n] - start[n].float()).flatten() for n in sorted(e)]) for e in ends]
    assert torch.cosine_similarity(*ways, dim=0) > 0.9  # the same way from the same start
    run(tmp_path / "other", "trainer.per_device_train_batch_size=4", "seed=5")
    other = AutoModelForImageTextToText.from_pretrained(tmp_path / "other" / "checkpoint")
    states = other.state_dict()
    way = torch.cat([(states[n] - start[n].float()).flatten() for n in sorted(states)])
    assert torch.cosine_similarity(ways[0], way, dim=0) < 0.7  # other rows lead elsewhere


@pytest.mark.slow
def test_more_epochs_go_on(tmp_path: Path) -> None:
    path = rows_on_disk(tmp_path)
    options = [x for x in SMALL if not x.startswith(("data.", "trainer.max_steps"))]
    asked = [*options, "data=llava", f"data.path={path}", "data.bad=skip", "trainer.max_steps=-1"]
    first = task.train(compose(asked), tmp_path / "a")
    assert first["steps"] == 3  # five rows, two at once
    more = task.train(compose([*asked, "trainer.num_train_epochs=2"]), tmp_path / "a")
    assert more["steps"] == 6


def test_weights_that_are_trained_are_of_full_precision(tmp_path: Path) -> None:
    config = compose([*SMALL, "model.dtype=auto"])
    assert task.dtype_of(config) == "float32"
    assert task.dtype_of(compose([*SMALL, "model.dtype=auto", "peft=lora"])) == "auto"
    with pytest.warns(UserWarning, match="steps smaller than its resolution are lost"):
        assert task.dtype_of(compose([*SMALL, "model.dtype=bfloat16"])) == "bfloat16"


@pytest.mark.slow
def test_what_adapters_were_trained_to_is_what_other_tasks_load(tmp_path: Path) -> None:
    """The exported folder and one of the trainer's own, which has no processor."""
    from tokenreduce.inference.loaded import load
    from tokenreduce.inference.spec import ModelSpec

    pytest.importorskip("peft")
    run(tmp_path, "peft=lora", "peft.rank=2", "strategy=random", "data.measured=0")
    plain = load(ModelSpec(device="cpu")).model.state_dict()
    found = [
        load(ModelSpec(str(tmp_path / name), device="cpu")).model.state_dict()
        for name in ("checkpoint", f"checkpoints/checkpoint-{STEPS}")
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in plain)
    assert any(not torch.equal(found[0][name], plain[name]) for name in plain)
