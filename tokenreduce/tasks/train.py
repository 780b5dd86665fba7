"""`task=train`: trains a model whose tokens are reduced, with transformers' Trainer.

    tokenreduce task=train model=tiny strategy=pyramid_drop trainer.max_steps=100
    tokenreduce task=train model.id=path data=llava data.path=rows.jsonl peft=lora
    torchrun --nproc-per-node 2 -m tokenreduce task=train ...

Writes checkpoints, and at the end `checkpoint/` (the best weights, the processor, the reduction),
`log.jsonl` and `curve.png`. The same command with the same folder goes on after a kill.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from transformers import Trainer, TrainingArguments, set_seed

import tokenreduce as tr
from tokenreduce.checkpoint import FILE, WEIGHTS
from tokenreduce.config import build_scheduler, build_strategy
from tokenreduce.data.encoding import Collator, EncodedDataset, Encoder
from tokenreduce.files import finite, write_text
from tokenreduce.fit import Logits
from tokenreduce.integrations.trainer import PREFIX, follow
from tokenreduce.tasks import first_process, tasks
from tokenreduce.tasks.loading import load, model_source
from tokenreduce.tasks.training.checkpoints import (
    Resumed,
    begin,
    check_same,
    export,
    fault,
    finished,
    newest_whole,
)
from tokenreduce.tasks.training.curve import draw
from tokenreduce.tasks.training.setup import adapted, arguments, check_peft, freeze
from tokenreduce.tasks.training.sources import Data, conversations
from tokenreduce.tasks.training.summary import summary

SKIPPED = "skipped.jsonl"
HALF = ("bfloat16", "float16")
LOGGED = ("kept_share", "flops_share", "tokens_per_second")


@tasks.register("train")
def train(config: DictConfig, output: Path) -> dict[str, Any]:
    """Trains, exports, draws; returns what was trained and how it went.

    output: folder of this run.
    """
    strategy, scheduler = build_strategy(config), build_scheduler(config)
    logits = logits_of(config)
    check_peft(config.peft, model_source(config))
    data = conversations(config)
    folder = output / "checkpoints"
    settings = arguments(config, folder, data.measured is not None)
    check_same(folder, config)
    learned = isinstance(strategy, tr.LearnedStrategy)
    own = (FILE, WEIGHTS) if learned else ()
    found = newest_whole(folder, own)
    weights = found if config.peft.name == "none" else None  # adapters are the trainer's to load
    loaded = load(config, weights, dtype_of(config))
    model = loaded.model
    freeze(model, list(config.task.frozen))
    set_seed(config.seed)  # what adapters begin with is drawn
    model = adapted(model, config.peft, config.model.get("revision"))
    ended = finished(found, settings.max_steps, settings.num_train_epochs)
    if learned and found is not None:
        reduction = tr.load(model, found)  # with the strategy's own parameters
    else:
        how = {name: config[name] for name in ("positions", "seed", "min_tokens")}
        reduction = tr.reduce(model, strategy, scheduler, logits=logits, **how)
    with quiet_if(ended is not None), reduction:
        trainer = make_trainer(
            config, loaded.processor, model, settings, data, output / SKIPPED, weights is not None
        )
        follow(trainer, reduction)
        if first_process():
            begin(folder, config)
            if found is None:
                (output / SKIPPED).unlink(missing_ok=True)
        started = time.monotonic()
        if ended is None:
            trainer.train(resume_from_checkpoint=None if found is None else str(found))
            if data.measured is not None and not measured_now(trainer):
                trainer.evaluate()
        else:
            trainer.state = ended
        seconds = time.monotonic() - started
        best = best_of(trainer, own)
        export_to = output / "checkpoint"
        # adapters of a training that has ended were never loaded
        weights_of = best or (found if ended is not None else None)
        export(trainer, loaded.processor, weights_of, export_to)
        if first_process():
            save_beside(reduction, best if learned else None, export_to)
    history = trainer.state.log_history
    if not first_process():
        return {}
    log = output / "log.jsonl"
    write_text(log, "".join(json.dumps(finite(row)) + "\n" for row in history))
    curve = draw(history, output / "curve.png")
    told = {
        "checkpoint": str(export_to),
        "best": None if best is None else best.name,
        "resumed_from": None if found is None else found.name,
        "log": str(log),
        "curve": None if curve is None else str(curve),
        "logits": logits,
        "rows": {"train": len(data.train), "measured": len(data.measured or ())},
        "skipped": skipped(data.skipped, output / SKIPPED),
        **numbers(trainer, seconds),
    }
    Console().print(summary(told, f"{strategy}, {scheduler}"))
    return told


def save_beside(reduction: tr.Reduction, best: Path | None, folder: Path) -> None:
    """Writes the reduction beside exported weights; a learned one as it was when they were best."""
    reduction.save(folder)
    if best is not None:
        for name in (FILE, WEIGHTS):
            shutil.copy2(best / name, folder / name)


@contextmanager
def quiet_if(ended: bool) -> Iterator[None]:
    """Says nothing of a reduction that reduces nothing, where nothing is left to train."""
    with warnings.catch_warnings():
        if ended:
            warnings.simplefilter("ignore", tr.ReductionWarning)
        yield


def logits_of(config: DictConfig) -> Logits:
    """`config.logits`; where it is open, text alone, unless the loss is computed outside.

    Raises:
        ValueError: label smoothing with logits of text alone.
    """
    smoothed = float(config.trainer.label_smoothing_factor or 0) > 0
    if smoothed and config.logits == "text":
        raise ValueError(
            "trainer.label_smoothing_factor compares every position's logits with its label: "
            "use logits=full"
        )
    found: Logits = "full" if smoothed else "text"
    return found if config.logits is None else config.logits


def dtype_of(config: DictConfig) -> str:
    """The precision of the weights that are loaded: of those that are trained, float32.

    AdamW's steps are smaller than what half precision tells apart: most weights would not move.
    """
    name = str(config.model.get("dtype", "auto"))
    if config.peft.name != "none":
        return name
    if name in HALF:
        warnings.warn(
            f"training weights in {name}: steps smaller than its resolution are lost; "
            "model.dtype=float32 trainer.bf16=true computes as fast and keeps them",
            stacklevel=2,
        )
    return "float32" if name == "auto" else name


def make_trainer(
    config: DictConfig,
    processor: Any,
    model: Any,
    settings: TrainingArguments,
    data: Data,
    log: Path,
    loaded: bool,
) -> Trainer:
    """The trainer of `model` on encoded conversations.

    Args:
        config: the whole configuration.
        processor: of the model.
        model: what is trained.
        settings: of the trainer.
        data: to train on, and to measure on.
        log: gets the rows that are left out.
        loaded: whether the model has the weights of the checkpoint that it goes on from.
    """
    encoder = Encoder(processor, config.data.get("max_length"), config.data.get("prompt", "chat"))
    bad = config.data.get("bad", "error")
    train_on, measured_on = (
        None if rows is None else EncodedDataset(rows, encoder, bad, log)
        for rows in (data.train, data.measured)
    )
    kind: type[Trainer] = Resumed if loaded else Trainer
    trainer = kind(
        model=model,
        args=settings,
        train_dataset=train_on,
        eval_dataset=measured_on,
        data_collator=Collator(processor),
    )
    if trainer.label_smoother is not None:
        # the trainer shifts labels for models that it knows to be causal: of text alone
        trainer.label_smoother = partial(trainer.label_smoother, shift_labels=True)
    return trainer


def measured_now(trainer: Trainer) -> bool:
    """Whether the held-out loss was measured after the last step."""
    steps = [row["step"] for row in trainer.state.log_history if "eval_loss" in row]
    return trainer.state.global_step in steps


def best_of(trainer: Trainer, also: Sequence[str] = ()) -> Path | None:
    """The checkpoint with the least held-out loss; None where it is the last or none is known.

    Warns of one whose files, `also` among them, are missing or cut short: the last weights are
    exported then.
    """
    name = trainer.state.best_model_checkpoint
    if name is None or not Path(name).is_dir():
        return None
    if reason := fault(Path(name), also):
        if first_process():
            warnings.warn(
                f"the best checkpoint, {name}, is not whole ({reason}): checkpoint/ gets the last "
                "weights in its place",
                stacklevel=2,
            )
        return None
    return Path(name)


def skipped(before: Sequence[tuple[str, str]], log: Path) -> dict[str, Any]:
    """How many rows were left out for which reason, and which: when read, and when encoded."""
    found = list(before)
    if log.exists():
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        found += [(row["name"], row["reason"]) for row in rows]
    counts = Counter(reason for _, reason in found)
    names = sorted(name for name, _ in found)
    return {"rows": len(found), "reasons": dict(counts), "names": names[:1000]}


def numbers(trainer: Trainer, seconds: float) -> dict[str, Any]:
    """What the training came to."""
    history = trainer.state.log_history
    losses = [row["loss"] for row in history if "loss" in row]
    measured = [row["eval_loss"] for row in history if "eval_loss" in row]
    mean = next((row["train_loss"] for row in reversed(history) if "train_loss" in row), None)
    parameters = list(trainer.model.parameters())
    return {
        "parameters": {
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "all": sum(p.numel() for p in parameters),
        },
        "processes": trainer.args.world_size,
        "device": str(trainer.args.device),
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 2),
        "loss": {"first": losses[0], "last": losses[-1], "mean": mean} if losses else None,
        "held_out_loss": {"best": min(measured), "last": measured[-1]} if measured else None,
        **{name: averaged(history, PREFIX + name) for name in LOGGED},
        "peak_memory_bytes": peak_memory(trainer.args.device),
    }


def averaged(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a number over the logs that have it."""
    found = [float(row[name]) for row in history if row.get(name) is not None]
    return sum(found) / len(found) if found else None


def peak_memory(device: torch.device) -> int | None:
    """Bytes of the GPU that were taken at most, or of this process; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
