"""Preferences: the model that is trained, and the frozen one that it is compared with."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch

import tokenreduce as tr
from tests.training.loops import make
from tokenreduce.integrations.trainer import follow
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]
SCHEDULE = tr.Curriculum(tr.Explicit((1, 3), (0.5, 0.25)), begin=0.0, end=0.5)


def with_reference(folder: Any) -> tuple[Any, Any, Any]:
    """A trainer, its model and the reference, as TRL's trainers keep it."""
    model = LLAVA.model()
    loop, _ = make(model, folder)
    loop.ref_model = copy.deepcopy(model)
    return loop, model, loop.ref_model


def test_the_reference_is_reduced_as_the_model_is(tmp_path: Any) -> None:
    loop, model, reference = with_reference(tmp_path)
    given = batch(LLAVA, (1, 2)).inputs
    reduction = tr.reduce(model, "fastv", SCHEDULE, positions="compact", min_tokens=1)
    callback = follow(loop, reduction)
    other = callback.reference
    assert other is not None
    assert repr(other) == repr(reduction)
    for progress in (0.25, 1.0):
        callback.advance(progress)
        with torch.no_grad():
            assert torch.equal(model(**given).logits, reference(**given).logits)
        assert other.report.tokens_per_layer == reduction.report.tokens_per_layer
    reduction.remove()  # and the reference with it
    with torch.no_grad():
        whole = LLAVA.model()(**given).logits
        assert torch.equal(reference(**given).logits, whole)
        assert torch.equal(model(**given).logits, whole)


def test_a_reference_that_its_owner_reduced_stays_so(tmp_path: Any) -> None:
    loop, model, reference = with_reference(tmp_path)
    with tr.reduce(reference, "stride", tr.Single(1, 0.5)) as own, torch.no_grad():
        reduction = tr.reduce(model, "fastv", SCHEDULE)
        assert follow(loop, reduction).reference is None
        reference(**batch(LLAVA, (1,)).inputs)
        assert own.report.applied == [True]
        model(**batch(LLAVA, (1,)).inputs)
        reduction.remove()


def test_a_reference_that_cannot_be_reduced_is_told(tmp_path: Any) -> None:
    loop, model, _ = with_reference(tmp_path)
    loop.ref_model = torch.nn.Linear(2, 2)
    with tr.reduce(model, "fastv", SCHEDULE) as reduction:
        with pytest.warns(tr.ReductionWarning, match="the reference model stays unreduced"):
            follow(loop, reduction)
        model(**batch(LLAVA, (1,)).inputs)
    loop, model, _ = with_reference(tmp_path)
    loop.args.precompute_ref_log_probs = True
    with tr.reduce(model, "fastv", SCHEDULE) as reduction:
        with pytest.warns(tr.ReductionWarning, match="has asked the reference model unreduced"):
            follow(loop, reduction)
        model(**batch(LLAVA, (1,)).inputs)


def test_text_logits_are_refused_beside_a_mask_of_every_position(tmp_path: Any) -> None:
    loop, model, _ = with_reference(tmp_path)
    with tr.reduce(model, "fastv", SCHEDULE, logits="text") as reduction:
        with pytest.raises(ValueError, match='reduce with logits="full"'):
            follow(loop, reduction)
        reduction._applied = True  # nothing is run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL of its own options
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_before_a_step_dpo_prefers_nothing(tmp_path: Any) -> None:
    """At a learning rate of zero both models say the same: -log sigmoid(0), however reduced."""
    pytest.importorskip("trl", minversion="1.15")
    datasets = pytest.importorskip("datasets", minversion="4.7")
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    from tests.training.test_sft import rows
    from tokenreduce.testing.checkpoints import write

    folder = tmp_path / "model"
    write("qwen2_5_vl", folder)
    asked = rows("prompt")
    said = [turn[0]["content"] for turn in asked["completion"]]
    table = {
        "images": asked["images"],
        "prompt": asked["prompt"],
        "chosen": asked["completion"],
        "rejected": [[{"role": "assistant", "content": f"many {text}"}] for text in said],
    }
    options: dict[str, Any] = {
        "max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 0.0,
        "max_length": None, "gradient_checkpointing": False, "save_strategy": "no", "bf16": False,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the trainer, not about what is in it
        loop = DPOTrainer(
            model=model,
            args=DPOConfig(output_dir=str(tmp_path / "out"), **options),
            train_dataset=datasets.Dataset.from_dict(table),
            processing_class=AutoProcessor.from_pretrained(folder),
        )
    with tr.reduce(model, "fastv", tr.Explicit((1, 3), (0.5, 0.25))) as reduction:
        follow(loop, reduction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop.train()
        assert reduction.report.applied == [True] * 4
    losses = [row["loss"] for row in loop.state.log_history if "loss" in row]
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's, of its own options and of the tokenizer
def test_grpo_is_measured_against_a_reference_that_is_reduced_alike(tmp_path: Any) -> None:
    """Before a step the policy does not diverge from it: a KL of zero."""
    pytest.importorskip("trl", minversion="1.15")
    datasets = pytest.importorskip("datasets", minversion="4.7")
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    from tests.training.test_sft import rows
    from tokenreduce.testing.checkpoints import write

    folder = tmp_path / "model"
    write("qwen2_5_vl", folder)
    asked = rows("prompt")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    options: dict[str, Any] = {
        "max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2, "beta": 0.1,
        "max_completion_length": 4, "learning_rate": 0.0, "use_cpu": True, "bf16": False,
        "report_to": [], "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
    }  # fmt: skip
    loop = GRPOTrainer(
        model=model,
        args=GRPOConfig(output_dir=str(tmp_path / "out"), **options),
        train_dataset=datasets.Dataset.from_dict({n: asked[n] for n in ("images", "prompt")}),
        processing_class=AutoProcessor.from_pretrained(folder),
        reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
    )
    with tr.reduce(model, "fastv", tr.Explicit((1, 3), (0.5, 0.25))) as reduction:
        assert follow(loop, reduction).reference is not None
        loop.train()
    [row] = [row for row in loop.state.log_history if "loss" in row]
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)
    assert row["tokenreduce/kept_share"] < 0.5
