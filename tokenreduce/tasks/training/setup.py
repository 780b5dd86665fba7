"""What is trained of a model, and how: frozen parts, adapters, the trainer's arguments."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import TrainingArguments

from tokenreduce.adapter import adapter_for
from tokenreduce.registry import did_you_mean
from tokenreduce.tasks.lora import holds_adapters

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
"""Options that are whole numbers of 1 or more, or shares of all steps where they are of steps."""


def arguments(config: DictConfig, folder: Path, measured: bool) -> TrainingArguments:
    """The arguments of the trainer.

    Args:
        config: the whole configuration; `config.trainer` holds them by their own names.
        folder: where checkpoints go.
        measured: whether there is something to measure the loss on.

    Raises:
        ValueError: an option that `TrainingArguments` does not have, or one that another option
            stands for, or a value that it refuses.
    """
    given: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in given:
        if name in FIXED:
            raise ValueError(f"trainer.{name} is what {FIXED[name]} stands for: leave it out")
        if name not in known and name not in OURS:
            raise ValueError(
                f"no option trainer.{name}{did_you_mean(name, known)}: the options are those of "
                "transformers.TrainingArguments"
            )
    _check_numbers(given)
    checkpointing = bool(given.pop("activation_checkpointing"))
    name = "activation_checkpointing"
    name = name if name in known else "gradient_checkpointing"  # before transformers 5.23
    given[name] = checkpointing
    given.pop("name")
    if not measured:
        given["eval_steps"] = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # a tower's layers behind the one that is read get no gradient, nor does it from text alone
        given.setdefault("ddp_find_unused_parameters", True)
    shown = config.task.progress
    try:
        found = TrainingArguments(
            output_dir=str(folder),
            seed=config.seed,
            data_seed=config.seed,
            use_cpu=str(config.device) == "cpu",
            eval_strategy="steps" if measured else "no",
            metric_for_best_model="eval_loss" if measured else None,
            greater_is_better=False if measured else None,
            remove_unused_columns=False,
            label_names=["labels"],
            prediction_loss_only=True,
            disable_tqdm=not (sys.stderr.isatty() if shown is None else shown),
            **given,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"the trainer refuses its options: {error}") from error
    _check_device(str(config.device), found)
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
        part = name in ("logging_steps", "eval_steps", "save_steps") and isinstance(value, float)
        if isinstance(value, bool) or not isinstance(value, int | float):
            fits = False
        else:
            fits = 0 < value < 1 if part and value < 1 else value >= 1 and value == int(value)
        if not fits:
            other = ", or -1 for as many as num_train_epochs takes" if name == "max_steps" else ""
            raise ValueError(
                f"trainer.{name} must be a whole number of at least 1{other}, not {value!r}"
            )
    for name in ("num_train_epochs", "learning_rate"):
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"trainer.{name} must be a number above 0, not {value!r}")


def _check_device(name: str, settings: TrainingArguments) -> None:
    """Refuses a device that the trainer would not train on.

    Raises:
        ValueError: one of several GPUs, or several without a process for each.
    """
    if name.startswith("cuda:") and name != "cuda:0":
        raise ValueError(
            f"device={name}: the trainer takes the first GPU that it sees; set "
            f"CUDA_VISIBLE_DEVICES={name.partition(':')[2]} and leave device out"
        )
    if settings.n_gpu > 1:
        raise ValueError(
            f"{settings.n_gpu} GPUs and one process: start one for each with torchrun "
            "--nproc-per-node, or set CUDA_VISIBLE_DEVICES to one of them"
        )


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Leaves parameters with one of `parts` in their names as they are.

    Raises:
        ValueError: a part that is in no name, or nothing left to train.
    """
    for part in parts:
        found = [p for name, p in model.named_parameters() if part in name]
        if not found:
            names = sorted({name.split(".")[1] for name, _ in model.named_parameters()})
            raise ValueError(
                f"task.frozen={part}: no parameter has that in its name"
                f"{did_you_mean(part, names)} (there are {', '.join(names)})"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("task.frozen leaves nothing to train")


def adapted(model: nn.Module, peft: DictConfig, revision: str | None = None) -> Any:
    """The model inside the adapters that the group `peft` names; the model itself for `none`.

    The adapters note where the model came from, at which `revision`: without it they are nothing.

    Raises:
        ValueError: an unknown kind, or peft is not installed.
    """
    if peft.name == "none":
        return model
    if peft.name != "lora":
        raise ValueError(f"no peft {peft.name!r} (known: lora, none)")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError('peft=lora needs peft: pip install "tokenreduce[train]"') from error
    config = LoraConfig(
        r=peft.rank,
        lora_alpha=peft.alpha,
        lora_dropout=peft.dropout,
        target_modules=_targets(model, peft.targets),
        modules_to_save=_named(model, list(peft.also)) or None,
    )
    try:
        with warnings.catch_warnings():
            # PEFT's own, on transformers 5.23 and later
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            found = get_peft_model(model, config, revision=revision)
    except ValueError as error:
        raise ValueError(f"peft.targets={peft.targets}: {error}") from error
    base = config.base_model_name_or_path
    if base is not None and os.path.isdir(base):  # it is read from another folder later
        config.base_model_name_or_path = os.path.abspath(base)
    return found


def check_peft(peft: DictConfig, source: str) -> None:
    """Refuses adapters on top of adapters, or of no size, before anything is loaded.

    They would be saved beside the name of the model under both, without what was trained first.

    Raises:
        ValueError: `source` holds adapters, and `peft` names new ones; or numbers that are none
            of adapters; or peft is not installed.
    """
    if peft.name == "none":
        return
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f'peft={peft.name} needs peft: pip install "tokenreduce[train]"')
    rank, alpha, dropout = peft.get("rank", 1), peft.get("alpha", 1), peft.get("dropout", 0.0)
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"peft.rank must be a whole number of at least 1, not {rank!r}")
    if not isinstance(alpha, int | float) or not alpha > 0:
        raise ValueError(f"peft.alpha must be a number above 0, not {alpha!r}")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"peft.dropout must be at least 0 and below 1, not {dropout!r}")
    if holds_adapters(Path(source)):
        raise ValueError(
            f"model.id={source} holds adapters already, which peft={peft.name} would leave out of "
            "what it saves: use peft=none, which trains and saves the merged model"
        )


def _named(model: nn.Module, names: list[str]) -> list[str]:
    """`names`, each of which ends the name of a module.

    Raises:
        ValueError: a name that is of no module.
    """
    for name in names:
        if not any(f".{found}".endswith(f".{name}") for found, _ in model.named_modules()):
            raise ValueError(f"peft.also={name}: no module has that name")
    return names


def _targets(model: Any, targets: Any) -> list[str] | str:
    """Names of modules, or what the user wrote for them."""
    if not isinstance(targets, str):
        return [str(target) for target in targets]
    if targets == "all":
        return "all-linear"
    if targets != "decoder":
        return targets
    layers = adapter_for(model).decoder(model).layers
    inside = {id(part) for part in layers.modules() if isinstance(part, nn.Linear)}
    return [name for name, part in model.named_modules() if id(part) in inside]
