"""Runs one stage of training through `transformers.Trainer`: resumable, distributed, logged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tokenreduce.errors import BadOption
from tokenreduce.files import write_json, write_text
from tokenreduce_tiny.curriculum import Curriculum
from tokenreduce_tiny.optim import build_optimizer, build_schedule

Tensors = dict[str, torch.Tensor]
Compose = Callable[[Sequence[int], str, float], Tensors]
MEMO = "progress.json"  # next to the Trainer's files; written last, so it marks a whole checkpoint


@dataclass
class Stage:
    """What a stage trains, on what, and how it is measured.

    `module(**batch)` returns `loss` and `tallies` (2, measures); `compose(indices, split, level)`
    makes that batch from numbered samples.
    """

    name: str
    module: nn.Module
    measures: tuple[str, ...]
    compose: Compose
    curriculum: Curriculum


class Numbers(Dataset[dict[str, int]]):
    """The numbers 0..n-1.

    A sample is drawn from its number when its step begins, because only then is the curriculum's
    level known; this is what makes resumption exact and skipping free.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, int]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return {"index": index}


class StageTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that composes its batches itself and tells the curriculum what came of them."""

    stage: Stage

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: nn.Module, inputs: Tensors, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Draw the numbered samples at the level of now, run them, note how it went."""
        level = self.stage.curriculum.level
        batch = self.stage.compose(inputs["index"].tolist(), "train", level)
        outputs = model(**batch)
        seen = _sum_over_ranks(
            torch.cat([outputs["loss"].detach()[None], outputs["tallies"].flatten().float()])
        )
        loss = float(seen[0]) / _ranks()[1]
        self.stage.curriculum.observe(
            self.state.global_step, loss, seen[1:].view(2, len(self.stage.measures))
        )
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


class Record(TrainerCallback):  # type: ignore[misc]
    """Writes the log, measures held-out accuracy, keeps the curriculum next to each checkpoint."""

    def __init__(self, stage: Stage, config: DictConfig, log: Path) -> None:
        self.stage = stage
        self.config = config
        self.log = log
        self.earlier = 0.0  # seconds of this stage before it was interrupted
        self.began = time.monotonic()
        self.heldout: list[Tensors] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from the checkpoint that the Trainer has loaded, if any."""
        self.began = time.monotonic()
        if state.global_step:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            memo = json.loads((folder / MEMO).read_text())
            self.stage.curriculum.restore(memo["curriculum"])
            self.earlier = memo["seconds"]
        if state.is_world_process_zero and self.log.exists():
            self._forget_after(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write a row when one is due, with held-out accuracies when those are."""
        step, last = state.global_step, state.global_step == state.max_steps
        measured = step % self.config.evaluate.every == 0 or last
        if not (measured or step % self.config.log_every == 0):
            return
        curriculum = self.stage.curriculum
        row: dict[str, Any] = {
            "stage": self.stage.name,
            "step": step,
            "seconds": round(self._seconds(), 1),
            "loss": round(curriculum.loss, 4),
            "level": round(curriculum.level, 2),
            "train": {name: round(value, 3) for name, value in curriculum.running.items()},
        }
        if measured:
            row["heldout"] = self._measure()
        if state.is_world_process_zero:
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the curriculum next to the weights; the checkpoint is whole from here on."""
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            memo = {"curriculum": self.stage.curriculum.state(), "seconds": self._seconds()}
            write_json(folder / MEMO, memo)

    def _forget_after(self, step: int) -> None:
        """Take out of the log what an interrupted run wrote after its last checkpoint."""
        lines = self.log.read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines]
        name = self.stage.name
        kept = [
            line
            for line, row in zip(lines, rows, strict=True)
            if row["stage"] != name or row["step"] <= step
        ]
        write_text(self.log, "".join(kept))

    def _seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def _measure(self) -> dict[str, float]:
        """Accuracy at full difficulty on the first held-out images, each rank taking its share."""
        if self.heldout is None:
            rank, ranks = _ranks()
            own = range(rank, self.config.evaluate.images, ranks)
            chunks = [own[i : i + 16] for i in range(0, len(own), 16)]
            self.heldout = [self.stage.compose(chunk, "heldout", 1.0) for chunk in chunks]
        tallies = torch.zeros(2, len(self.stage.measures))
        self.stage.module.eval()
        with torch.no_grad():
            for batch in self.heldout:
                tallies += self.stage.module(**batch)["tallies"]
        self.stage.module.train()
        right, answers = _sum_over_ranks(tallies).tolist()
        shares = {
            name: round(good / all_, 3)
            for name, good, all_ in zip(self.stage.measures, right, answers, strict=True)
            if all_
        }
        return {**shares, "macro": round(sum(shares.values()) / max(1, len(shares)), 4)}


def run_stage(
    stage: Stage, config: DictConfig, numbers: DictConfig, folder: Path, log: Path, seed: int
) -> None:
    """Train one stage to its end, going on from the newest whole checkpoint in `folder`.

    config: the task's node (log_every, evaluate, save_every, resume); numbers: the stage's own
    (steps, images per step over all ranks, matrix_lr, other_lr, decay, rate).
    """
    ranks = _ranks()[1]
    if numbers.images % ranks:
        raise BadOption(f"{numbers.images} images a step cannot be shared by {ranks} processes")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=numbers.steps,
        per_device_train_batch_size=numbers.images // ranks,
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        ddp_backend="gloo" if ranks > 1 else None,
        ddp_find_unused_parameters=False if ranks > 1 else None,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    optimizer = build_optimizer(
        stage.module.named_parameters(), numbers.matrix_lr, numbers.other_lr, numbers.decay
    )
    schedule = build_schedule(optimizer, numbers.rate)
    trainer = StageTrainer(
        model=stage.module,
        args=arguments,
        train_dataset=Numbers(numbers.steps * numbers.images),
        optimizers=(optimizer, schedule),
        callbacks=[Record(stage, config, log)],
    )
    trainer.stage = stage
    newest = newest_checkpoint(folder) if config.resume else None
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if there is one."""
    whole = [memo.parent for memo in folder.glob(f"checkpoint-*/{MEMO}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def _ranks() -> tuple[int, int]:
    """This process's rank and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    if _ranks()[1] > 1:
        torch.distributed.all_reduce(values)
    return values
