"""One optimiser step of a stock `transformers.Trainer`, and everything that it computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.training.reference import MIXED, collator, gradients, samples

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")


@dataclass
class Step:
    """What one run computed.

    Attributes:
        losses: per optimiser step, as logged.
        gradients: right before the first optimiser step.
        weights: after the run.
        items: the `num_items_in_batch` of every call of the model.
    """

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    items: list[int] = field(default_factory=list)


class Look(TrainerCallback):
    """Takes down what a run computes."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.step.gradients:
            self.step.gradients = gradients(model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.step.losses.append(logs["loss"])


def make(
    model: Any,
    folder: Path,
    name: str = "llava",
    images: tuple[int, ...] = MIXED,
    parts: int = 1,
    steps: int = 1,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Trainer, Step]:
    """A stock script's trainer: all samples in one optimiser step, in `parts` micro-batches."""
    found = Step()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=len(images) // parts,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=options.pop("gradient_accumulation_steps", parts),
        logging_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy=options.pop("save_strategy", "no"),
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **options,
    )
    loop = Trainer(
        model=model,
        args=arguments,
        train_dataset=samples(name, images) * steps,
        eval_dataset=samples(name, images, seed=1),
        data_collator=collator(name),
        callbacks=[Look(found)],
        **(trainer or {}),
    )

    @torch.compiler.disable
    def items(_: Any, __: Any, given: dict[str, Any]) -> None:
        if "num_items_in_batch" in given:
            found.items.append(int(given["num_items_in_batch"]))

    model.register_forward_pre_hook(items, with_kwargs=True)
    return loop, found


def run(loop: Trainer, found: Step) -> Step:
    """Trains, and adds the weights."""
    loop.train()
    found.weights = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    assert all(torch.isfinite(x).all() for x in found.weights.values())
    return found
