"""Checkpoints of a training that may be killed at any moment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

STATE = "trainer_state.json"
"""What the trainer writes last of a checkpoint."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; None where there is none.

    A kill during saving leaves a folder without the file that is written last, or with a part of
    it: the checkpoint before it is the one to go on from.
    """
    found = [
        (int(number), path)
        for path in folder.glob("checkpoint-*")
        if (number := path.name.rpartition("-")[2]).isdigit() and _whole(path)
    ]
    return max(found)[1] if found else None


def _whole(path: Path) -> bool:
    try:
        json.loads((path / STATE).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return any(True for pattern in WEIGHTS for _ in path.glob(pattern))


def finished(found: Path | None, steps: int) -> TrainerState | None:
    """How a training stood that is at its end already; None for one that is not.

    The trainer would take one more step.

    Args:
        found: the newest whole checkpoint.
        steps: that are asked for; below 1 as many as there were to be.
    """
    if found is None:
        return None
    state = TrainerState.load_from_json(str(found / STATE))
    return state if state.global_step >= (steps if steps > 0 else state.max_steps) else None


def drop_parts(folder: Path) -> list[str]:
    """Deletes checkpoints that were not written to their end; returns their names."""
    parts = [path for path in folder.glob("checkpoint-*") if not _whole(path)]
    for path in parts:
        shutil.rmtree(path)
    return sorted(path.name for path in parts)


def export(trainer: Trainer, processor: Any, best: Path | None, folder: Path) -> None:
    """Writes the model as `from_pretrained` reads it: the best weights, else the last.

    Every process calls it: parts of a sharded model come from all of them.

    Args:
        trainer: behind its training.
        processor: written beside the weights.
        best: the checkpoint whose weights are taken.
        folder: replaced as a whole when the new one is complete.
    """
    partial = folder.with_name(folder.name + ".part")
    if trainer.args.should_save:
        shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(str(partial))
    if not trainer.args.should_save:
        return
    if best is not None:
        for pattern in WEIGHTS:
            for path in partial.glob(pattern):
                path.unlink()
            for path in best.glob(pattern):
                shutil.copy2(path, partial / path.name)
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class Resumed(Trainer):  # type: ignore[misc]  # transformers' types are loose
    """A trainer whose model has the checkpoint's weights already.

    transformers saves some models under older names of their weights, which `from_pretrained` knows
    and `Trainer` does not: it would go on with whatever the model has.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the weights are there."""
