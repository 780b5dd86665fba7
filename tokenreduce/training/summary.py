"""What a training came to: its best checkpoint, rows that were left out, losses, memory."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

import tokenreduce as tr
from tokenreduce.checkpoint import FILE, WEIGHTS
from tokenreduce.files import first_process, read_lines
from tokenreduce.integrations.trainer import PREFIX
from tokenreduce.training.resuming import fault

LOGGED = ("kept_share", "flops_share", "tokens_per_second")


def save_beside(reduction: tr.Reduction, best: Path | None, folder: Path) -> None:
    """Writes the reduction with exported weights; a learned one as it was when they were best."""
    reduction.save(folder)
    if best is not None:
        for name in (FILE, WEIGHTS):
            shutil.copy2(best / name, folder / name)


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
    found += [(row["name"], row["reason"]) for row in read_lines(log)]
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
    """Bytes of the GPU that were taken at most, or of this process; None where none are counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
