"""Training with reduced tokens against training without: accuracy, time, memory.

    python docs/studies/training.py

From the same weights, on the same scenes in the same order: the whole model, `pyramid_drop` and
`random` under the paper's schedule, and `pyramid_drop` under a curriculum; three seeds. Every
result is asked at full and at reduced inference. Each training is `tokenreduce task=train` in a
process of its own. Writes docs/results/training.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Study
from transformers import AutoModelForImageTextToText

import tokenreduce as tr

ARMS = {
    "whole": ["strategy=none"],
    "pyramid_drop": ["strategy=pyramid_drop"],
    "random": ["strategy=random", "scheduler=pyramid"],
    "curriculum": ["strategy=pyramid_drop", "scheduler=curriculum"],
}
ASKED: dict[str, tuple[str, Any]] = {
    "full": ("none", None),
    "pyramid_drop": ("pyramid_drop", tr.Pyramid()),
    "random": ("random", tr.Pyramid()),
}
SEEDS = (0, 1, 2)
RECIPE = [
    "task=train", "model=tiny", "device=cpu", "data.questions=1", "data.measured=32",
    "trainer.per_device_train_batch_size=16", "trainer.learning_rate=3e-4",
    "trainer.logging_steps=10", "trainer.save_total_limit=1", "task.progress=false",
]  # fmt: skip


def trained(arm: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Trains in a process of its own; what its result.json says."""
    output = folder / f"{arm}-{seed}"
    result = output / "result.json"
    if not result.exists():
        command = [
            sys.executable, "-m", "tokenreduce", *RECIPE, *ARMS[arm], f"seed={seed}",
            f"trainer.max_steps={steps}", f"trainer.save_steps={steps}",
            f"trainer.eval_steps={steps}", f"hydra.run.dir={output}",
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def main() -> None:
    study = Study("training", __doc__ or "")
    steps = 2 if study.given.smoke else 150
    folder = Path(os.environ.get("TOKENREDUCE_RUNS", tempfile.gettempdir())) / "training_study"
    folder = folder.with_name(f"{folder.name}_{steps}_{str(study.record['commit'])[:9]}")
    study.record["steps"], study.record["recipe"] = steps, RECIPE
    runs = study.record.setdefault("runs", {})
    for asked in ("pyramid_drop", "random"):  # before any training
        study.cell(f"untrained, asked {asked}", *ASKED[asked])
    for seed in SEEDS if not study.given.smoke else (0,):
        for arm in ARMS if not study.given.smoke else ("pyramid_drop",):
            found = trained(arm, seed, steps, folder)
            keys = ("loss", "held_out_loss", "seconds", "kept_share", "flops_share",
                    "tokens_per_second", "peak_memory_bytes", "steps")  # fmt: skip
            runs[f"{arm} {seed}"] = {key: found[key] for key in keys}
            study.write()
            study.model = AutoModelForImageTextToText.from_pretrained(
                found["checkpoint"], dtype=torch.float32
            ).eval()
            for asked, (strategy, schedule) in ASKED.items():
                study.cell(f"{arm} {seed}, asked {asked}", strategy, schedule)


if __name__ == "__main__":
    main()
