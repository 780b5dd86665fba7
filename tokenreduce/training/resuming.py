"""Checkpoints of a training that may be killed at any moment."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerState

from tokenreduce.errors import BadOption
from tokenreduce.files import first_process, parse_json, write_json
from tokenreduce.inference.naming import name_as_published

STATE = "trainer_state.json"
"""What the trainer writes last of a checkpoint."""
ASKED = "asked.json"
SAME = (
    "model", "data", "strategy", "scheduler", "peft", "positions", "logits", "seed", "min_tokens",
)  # fmt: skip
"""What a training that goes on must have been asked for."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def newest_whole(folder: Path, also: Sequence[str] = ()) -> Path | None:
    """The newest checkpoint that can be gone on from; None where there is none.

    `also` are files that it must have besides those of the trainer.

    A kill during saving leaves a folder without the file that is written last, or with a part of
    it; a full disk or a power cut may leave any file cut short. The checkpoint before it is the one
    to go on from; a warning names those that were passed over although they look complete.
    """
    numbered = [
        (int(number), path)
        for path in folder.glob("checkpoint-*")
        if (number := path.name.rpartition("-")[2]).isdigit()
    ]
    passed: list[str] = []
    found = None
    for _, path in sorted(numbered, reverse=True):
        reason = fault(path, also)
        if reason is None:
            found = path
            break
        if _state(path) is not None:
            passed.append(f"{path.name} ({reason})")
    if passed and first_process():
        then = "training begins anew" if found is None else f"going on from {found.name}"
        warnings.warn(f"{', '.join(passed)} cannot be gone on from: {then}", stacklevel=2)
    return found


def fault(path: Path, also: Sequence[str] = ()) -> str | None:
    """What is wrong with the files of a checkpoint, as far as their sizes tell; None: nothing."""
    if _state(path) is None:
        return f"no whole {STATE}"
    files = {file for pattern in WEIGHTS for file in path.glob(pattern)}
    if not files:
        return "no weights"
    files |= {path / name for name in also} | {*path.glob("*.pt"), *path.glob("*.pth")}
    for index in path.glob("*.safetensors.index.json"):
        try:
            files |= {path / name for name in parse_json(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} is broken"
    for file in sorted(files):
        if not file.is_file():
            return f"no {file.name}"
        if _cut(file):
            return f"{file.name} is cut short"
    return None


def _cut(file: Path) -> bool:
    """Whether a file ends before its content does."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares its table with its size
                return False
        if file.suffix == ".json":
            parse_json(file.read_bytes())
            return False
        return not zipfile.is_zipfile(file)  # what torch.save writes; the table is at the end
    except (OSError, ValueError, SafetensorError):
        return True


def _state(path: Path) -> Any:
    """What the file says that is written last; None where it is missing or broken."""
    try:
        found = parse_json((path / STATE).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finished(found: Path | None, steps: int, epochs: float) -> TrainerState | None:
    """How a training stood that is at its end already; None for one that is not.

    The trainer would take one more step.

    Args:
        found: the newest whole checkpoint.
        steps: that are asked for; below 1 it is epochs that count.
        epochs: that are asked for.
    """
    if found is None:
        return None
    state = TrainerState.load_from_json(str(found / STATE))
    if steps > 0:
        return state if state.global_step >= steps else None
    done = state.global_step >= state.max_steps and epochs <= state.num_train_epochs
    return state if done else None


def check_same(folder: Path, parts: Mapping[str, Any], resume: bool = True) -> None:
    """Refuses to go on with a training that was asked for something else.

    Args:
        folder: of the checkpoints.
        parts: what was asked for, plain data by the names in `SAME`.
        resume: whether a training may go on.

    Raises:
        ValueError: the folder holds checkpoints of another training, or any at all where none is
            to be gone on from.
    """
    asked = json.loads(json.dumps(parts))  # as the note will give it back
    note = folder / ASKED
    if any(folder.glob("checkpoint-*")):
        if not resume:
            raise BadOption(
                f"{folder} holds checkpoints: use another hydra.run.dir, or task.resume=true to go "
                "on from them"
            )
        if note.exists():
            before = {"min_tokens": 0, **json.loads(note.read_text())}
            other = [name for name in SAME if before.get(name) != asked[name]]
            if other:
                raise BadOption(
                    f"{folder} holds checkpoints of a training with another {', '.join(other)}: "
                    "use another hydra.run.dir"
                )


def note_asked(folder: Path, parts: Mapping[str, Any]) -> None:
    """Notes what a training that begins now was asked for, for `check_same`."""
    write_json(folder / ASKED, parts, indent=1)


def drop_parts(folder: Path) -> list[str]:
    """Deletes checkpoints that were not written to their end; returns their names.

    Those whose last file is there stay, whatever else they hold.
    """
    parts = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and _state(path) is None
    ]
    for path in parts:
        shutil.rmtree(path)
    return sorted(path.name for path in parts)


def export(trainer: Trainer, processor: Any, best: Path | None, folder: Path) -> None:
    """Writes the model as `from_pretrained` reads it: the best weights, else the last.

    Every process calls it: parts of a sharded model come from all of them.

    Args:
        trainer: after its training.
        processor: written next to the weights.
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
    name_as_published(partial, trainer.model.config)
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
