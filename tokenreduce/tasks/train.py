"""`task=train`: trains a model whose tokens are reduced, with transformers' Trainer.

    tokenreduce task=train model=tiny strategy=pyramid_drop trainer.max_steps=100
    tokenreduce task=train model.id=path data=llava data.path=rows.jsonl peft=lora
    torchrun --nproc-per-node 2 -m tokenreduce task=train ...

Writes checkpoints, and at the end `checkpoint/` (the best weights, the processor, the reduction),
`log.jsonl` and `curve.png`. The same command with the same folder goes on after a kill.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import Trainer, TrainingArguments, set_seed

import tokenreduce as tr
from tokenreduce.checkpoint import FILE, WEIGHTS
from tokenreduce.config import build_recipe, model_spec, plain, public
from tokenreduce.data.encoding import Collator, EncodedDataset, Encoder
from tokenreduce.errors import BadOption
from tokenreduce.files import finite, first_process, write_text
from tokenreduce.inference.loaded import load, model_source
from tokenreduce.integrations.trainer import follow
from tokenreduce.program.sources import Data, conversations
from tokenreduce.recipe import Logits
from tokenreduce.tasks import tasks
from tokenreduce.training.parts import adapted, check_peft, freeze
from tokenreduce.training.plot import draw
from tokenreduce.training.resuming import (
    SAME,
    Resumed,
    check_same,
    drop_parts,
    export,
    finished,
    newest_whole,
)
from tokenreduce.training.summary import best_of, measured_now, numbers, save_beside, skipped
from tokenreduce.training.table import summary
from tokenreduce.training.trainer_arguments import arguments

SKIPPED = "skipped.jsonl"
HALF = ("bfloat16", "float16")


@tasks.register("train")
def train(config: DictConfig, output: Path) -> dict[str, Any]:
    """Trains, exports, draws; returns what was trained and how it went.

    output: folder of this run.
    """
    logits = logits_of(config)
    recipe = replace(build_recipe(config), logits=logits)
    spec, peft = model_spec(config), plain(config.peft)
    check_peft(peft, model_source(spec))
    data = conversations(config)
    folder = output / "checkpoints"
    settings = settings_of(config, folder, data.measured is not None)
    learned = isinstance(recipe.strategy, tr.LearnedStrategy)
    own = (FILE, WEIGHTS) if learned else ()
    found = newest_whole(folder, own)
    weights = found if config.peft.name == "none" else None  # adapters are the trainer's to load
    loaded = load(spec, weights, dtype_of(config))
    model = loaded.model
    freeze(model, list(config.task.frozen))
    set_seed(config.seed)  # what adapters begin with is drawn
    model = adapted(model, peft, spec.revision)
    ended = finished(found, settings.max_steps, settings.num_train_epochs)
    saved = found if learned else None  # with the strategy's own parameters
    reduction = tr.reduce(model, recipe) if saved is None else tr.load(model, saved)
    with quiet_if(ended is not None), reduction:
        trainer = make_trainer(
            config, loaded.processor, model, settings, data, output / SKIPPED, weights is not None
        )
        follow(trainer, reduction)
        if first_process():
            drop_parts(folder)
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
    Console().print(summary(told, f"{recipe.strategy}, {recipe.schedule}"))
    return told


def settings_of(config: DictConfig, folder: Path, measured: bool) -> TrainingArguments:
    """The trainer's arguments, for a folder that holds no checkpoints of another training.

    Raises:
        ValueError: as `arguments` and `check_same`.
    """
    given: Any = OmegaConf.to_container(config.trainer, resolve=True)
    found = arguments(
        given,
        folder,
        measured,
        seed=config.seed,
        device=str(config.device),
        progress=config.task.progress,
    )
    asked = public(OmegaConf.masked_copy(config, list(SAME)), apart=True)
    check_same(folder, asked, config.task.resume)
    return found


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
        raise BadOption(
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
