"""The arguments of transformers' trainer, and those that options of ours stand for."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from tokenreduce.errors import BadOption, did_you_mean

OURS = ("name", "activation_checkpointing", "label_smoothing_factor")
"""Options of the group `trainer` that are read here; the others go through as they are."""
FIXED = {
    "output_dir": "hydra.run.dir",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "device",
    "disable_tqdm": "task.progress",
    "resume_from_checkpoint": "task.resume",
    "load_best_model_at_end": "nothing, since checkpoint/ holds the best anyway,",
    "gradient_checkpointing": "trainer.activation_checkpointing",
    "eval_strategy": "data.holdout (or data.measured)",
    "metric_for_best_model": "data.holdout (or data.measured)",
    "greater_is_better": "data.holdout (or data.measured)",
    "label_names": "data",
    "remove_unused_columns": "data",
    "prediction_loss_only": "data",
}
"""Arguments of the trainer that options of ours stand for."""


COUNTS = (
    *("max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "eval_steps", "save_steps"),
    "save_total_limit",
)
SHARES = ("logging_steps", "eval_steps", "save_steps")
"""Options that are whole numbers of 1 or more, or shares of all steps where they are of steps."""


def arguments(
    options: Mapping[str, Any],
    folder: Path,
    measured: bool,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> TrainingArguments:
    """The arguments of the trainer.

    Args:
        options: the trainer's, by their own names, and `activation_checkpointing`.
        folder: where checkpoints go.
        measured: whether there is something to measure the loss on.
        seed: of the order of the data and of what is drawn.
        device: as `ModelSpec` has it.
        progress: whether a bar is shown; None shows one on a screen.

    Raises:
        ValueError: an option that `TrainingArguments` does not have, or one that another option
            stands for, or a value that it refuses.
    """
    given = dict(options)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in given:
        if name in FIXED:
            raise BadOption(f"trainer.{name} is what {FIXED[name]} stands for: leave it out")
        if name not in known and name not in OURS:
            raise BadOption(
                f"no option trainer.{name}{did_you_mean(name, known)}: the options are those of "
                "transformers.TrainingArguments"
            )
    _check_numbers(given)
    checkpointing = bool(given.pop("activation_checkpointing", False))
    name = "activation_checkpointing"
    name = name if name in known else "gradient_checkpointing"  # before transformers 5.23
    given[name] = checkpointing
    given.pop("name", None)
    if not measured:
        given["eval_steps"] = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # a tower's layers after the one that is read get no gradient, nor does it from text alone
        given.setdefault("ddp_find_unused_parameters", True)
    try:
        found = TrainingArguments(
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            use_cpu=device == "cpu",
            eval_strategy="steps" if measured else "no",
            metric_for_best_model="eval_loss" if measured else None,
            greater_is_better=False if measured else None,
            remove_unused_columns=False,
            label_names=["labels"],
            prediction_loss_only=True,
            disable_tqdm=not (sys.stderr.isatty() if progress is None else progress),
            **given,
        )
    except (ValueError, TypeError) as error:
        raise BadOption(f"the trainer refuses its options: {error}") from error
    _check_device(device, found)
    return found


def _check_numbers(given: dict[str, Any]) -> None:
    """Refuses numbers that transformers would take for another one, or fail on in mid-training.

    Raises:
        ValueError: the option with its value.
    """
    for name in COUNTS:
        value = given.get(name)
        if value is None or (name == "max_steps" and value == -1):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        share = number and name in SHARES and 0 < value < 1
        if not share and not (number and value >= 1 and value % 1 == 0):
            other = ", or -1 for as many as num_train_epochs takes" if name == "max_steps" else ""
            raise BadOption(
                f"trainer.{name} must be a whole number of at least 1{other}, not {value!r}"
            )
    for name in ("num_train_epochs", "learning_rate"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise BadOption(f"trainer.{name} must be a number above 0, not {value!r}")


def _check_device(name: str, settings: TrainingArguments) -> None:
    """Refuses a device that the trainer would not train on.

    Raises:
        ValueError: one of several GPUs, or several without a process for each.
    """
    if name.startswith("cuda:") and name != "cuda:0":
        raise BadOption(
            f"device={name}: the trainer takes the first GPU that it sees; set "
            f"CUDA_VISIBLE_DEVICES={name.partition(':')[2]} and leave device out"
        )
    if settings.n_gpu > 1:
        raise BadOption(
            f"{settings.n_gpu} GPUs and one process: start one for each with torchrun "
            "--nproc-per-node, or set CUDA_VISIBLE_DEVICES to one of them"
        )
