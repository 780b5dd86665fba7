"""A reduction inside `transformers.Trainer`: progress, logs, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import tokenreduce as tr
from tokenreduce.integrations.trainer import ReductionCallback, follow
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]
SCHEDULE = tr.Curriculum(tr.Explicit((2, 4), (0.5, 0.2)), begin=0.0, end=0.8)
STEPS, PARTS = 5, 2


class Reporter(TrainerCallback):
    """What a tracker of `report_to` would be told."""

    def __init__(self):
        self.told, self.progress = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told.append(dict(logs))


def rows(n):
    """`n` samples of one picture each, with answers."""
    found = []
    for seed in range(n):
        given = batch(LLAVA, (1,), seed=seed)
        found.append({k: x[0] for k, x in given.inputs.items()} | {"labels": given.labels[0]})
    return found


def collate(samples):
    longest = max(len(x["input_ids"]) for x in samples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    out = {"pixel_values": torch.stack([x["pixel_values"] for x in samples])}
    for name, value in fill.items():
        padded = [
            torch.nn.functional.pad(x[name], (0, longest - len(x[name])), value=value)
            for x in samples
        ]
        out[name] = torch.stack(padded)
    return out


def settings(folder, **options):
    usual = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": PARTS,
        "logging_steps": 2,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": [],
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return TrainingArguments(**usual | options)


def trainer(model, folder, **options):
    reporter = Reporter()
    return Trainer(
        model=model,
        args=settings(folder, **options),
        train_dataset=rows(STEPS * PARTS * 2),
        eval_dataset=rows(2),
        data_collator=collate,
        callbacks=[reporter],
    ), reporter


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    model = LLAVA.model()
    seen = []
    with tr.reduce(model, "random", SCHEDULE, logits="text") as reduction:
        model.register_forward_hook(lambda *_: seen.append((reduction.progress, reduction.report)))
        loop, reporter = trainer(model, folder)
        follow(loop, reduction)
        loop.train()
        after = reduction.progress
    return folder, loop, reporter, seen, after


def test_the_schedule_follows_training(trained):
    _, _, _, seen, after = trained
    assert [p for p, _ in seen] == [step / STEPS for step in range(STEPS) for _ in range(PARTS)]
    for progress, report in seen:
        for stop, said in zip(SCHEDULE.stops(6, progress), report.stops, strict=True):
            assert said["kept"] == [stop.count(25)] * 2
    assert after == 1.0


def test_the_logs_say_what_was_reduced(trained):
    _, loop, reporter, seen, _ = trained
    logs = [row for row in reporter.told if "loss" in row]
    assert len(logs) == 2  # at steps 2 and 4
    for i, row in enumerate(logs):
        reports = [report for _, report in seen[4 * i : 4 * (i + 1)]]
        full = 25 * 2 * 4
        assert row["tokenreduce/visual_tokens_in"] == full
        last = sum(sum(report.stops[-1]["kept"]) for report in reports)
        assert row["tokenreduce/visual_tokens_out"] == last
        layers = sum(
            2 * sum(report.visual_tokens) + 2 * sum(a["kept"]) + 2 * sum(b["kept"])
            for report in reports
            for a, b in [report.stops]
        )
        assert row["tokenreduce/kept_share"] == pytest.approx(layers / (6 * full))
        flops = [sum(x) for x in zip(*((r.flops, r.flops_full) for r in reports), strict=True)]
        assert row["tokenreduce/flops_share"] == pytest.approx(flops[0] / flops[1])
        assert row["tokenreduce/forward_tflops"] == pytest.approx(flops[0] / 1e12)
        assert row["tokenreduce/tokens_per_second"] > 0
    history = [row for row in loop.state.log_history if "loss" in row]
    assert all("tokenreduce/kept_share" in row for row in history)
    assert logs[0]["tokenreduce/kept_share"] > logs[1]["tokenreduce/kept_share"]
    assert not any("tokenreduce/kept_share" in row for row in reporter.told if "loss" not in row)


def test_every_checkpoint_has_its_reduction(trained):
    folder = trained[0]
    for step in (2, 4, 5):
        model = LLAVA.model()
        with tr.load(model, folder / f"checkpoint-{step}") as reduction:
            assert reduction.scheduler == SCHEDULE
            assert reduction.progress == 1.0
            model(**batch(LLAVA, (1,)).inputs)


def test_a_stop_at_the_input_counts_text_rightly(tmp_path):
    model = LLAVA.model()
    with tr.reduce(model, "random", tr.Single(0, 0.2)) as reduction:
        loop, reporter = trainer(model, tmp_path)
        follow(loop, reduction)
        loop.train()
    row = next(row for row in reporter.told if "loss" in row)
    assert row["tokenreduce/kept_share"] == pytest.approx(0.2)
    assert row["tokenreduce/visual_tokens_in"] == 200
    assert row["tokenreduce/visual_tokens_out"] == 40


@pytest.mark.slow
def test_training_resumes_with_the_same_schedule(tmp_path):
    """Killed after four steps and started again: the same weights as in one go."""
    weights = {}
    for name in ("whole", "killed"):
        model = LLAVA.model()
        with tr.reduce(model, "random", tr.Stochastic(SCHEDULE.target)) as reduction:
            loop, _ = trainer(model, tmp_path / name)
            follow(loop, reduction)
            if name == "killed":

                class Kill(TrainerCallback):
                    def on_step_end(self, args, state, control, **kwargs):
                        if state.global_step == 3:
                            raise KeyboardInterrupt

                loop.add_callback(Kill())
                with pytest.raises(KeyboardInterrupt):
                    loop.train()
                loop.remove_callback(Kill)
                # transformers 5.23 saves LLaVA under names that its Trainer does not find again
                saved = type(model).from_pretrained(tmp_path / name / "checkpoint-2")
                model.load_state_dict(saved.state_dict())
                loop, _ = trainer(model, tmp_path / name)
                follow(loop, reduction)
                loop.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-2"))
            else:
                loop.train()
        weights[name] = copy.deepcopy(model.state_dict())
    for name, value in weights["whole"].items():
        assert torch.equal(value, weights["killed"][name]), name


def test_evaluation_gives_a_loss_and_no_share(tmp_path):
    model = LLAVA.model()
    with tr.reduce(model, "random", tr.Single(2, 0.2)) as reduction:
        loop, reporter = trainer(model, tmp_path)
        follow(loop, reduction)
        found = loop.evaluate()
    assert found["eval_loss"] > 0
    assert not any(key.startswith("tokenreduce/") for row in reporter.told for key in row)


def test_an_evaluation_in_between_is_that_of_the_end(tmp_path):
    model = LLAVA.model()
    schedule = tr.Curriculum(tr.Single(2, 0.2), begin=0.0, end=1.0)
    with tr.reduce(model, "random", schedule) as reduction:
        loop, _ = trainer(model, tmp_path)
        follow(loop, reduction)
        reduction.progress = 0.0
        early = loop.evaluate()["eval_loss"]
        assert reduction.progress == 0.0
        assert [stop.keep for stop in reduction.stops] == [1.0]
        reduction.progress = 1.0
        assert loop.evaluate()["eval_loss"] == early


def test_the_wrong_model_and_a_second_reduction_are_refused(tmp_path):
    model, other = LLAVA.model(), LLAVA.model()
    with tr.reduce(model, "none") as reduction, tr.reduce(other, "none") as odd:
        loop, _ = trainer(model, tmp_path)
        with pytest.raises(ValueError, match="not the model"):
            follow(loop, odd)
        assert isinstance(follow(loop, reduction), ReductionCallback)
        with pytest.raises(ValueError, match="already"):
            follow(loop, reduction)
