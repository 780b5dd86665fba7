"""The embedded model under lmms-eval, full and reduced, beside our own evaluation.

    python docs/studies/lmms_eval/run.py

Writes the questions of the rendered task with their pictures, runs lmms-eval once for the full
model and once for every reduction, and compares: both runs were asked the same, every answer is
the one that our own evaluation gets, and the paired difference has an interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenreduce.data.items import Item, heldout
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.intervals import difference, shares
from tokenreduce.evaluation.statistics import sign_flip
from tokenreduce.inference.answer import answers
from tokenreduce.integrations.lmms_eval import split_settings
from tokenreduce.integrations.samples import read_samples

HERE = Path(__file__).resolve().parent
TASK = "tokenreduce_shapes"
DATA = Path("outputs/lmms_eval")
RUNS = {
    "full": {},
    "fastv": {"strategy": "fastv", "scheduler.keep": 0.25},
    "random": {"strategy": "random", "scheduler": "single", "scheduler.keep": 0.25},
    "pooling": {"strategy": "pooling", "scheduler.keep": 0.25},
}
"""Model arguments beside those of the model; fastv and random act at layer 2, pooling at 0."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Writes the data, asks every model, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40, help="held-out pictures")
    parser.add_argument("--questions", type=int, default=9, help="per picture")
    parser.add_argument("--output", default="docs/results/lmms_eval.json", help="results file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    items = heldout(0, given.images, given.questions)
    write_questions(items)
    record: dict[str, Any] = {
        "command": "python docs/studies/lmms_eval/run.py",
        "arguments": {"images": given.images, "questions": given.questions},
        "versions": {
            name: version(name)
            for name in ("tokenreduce", "lmms_eval", "torch", "transformers", "datasets", "decord")
        },
        "questions": [
            {"id": i, "image": x.image, "group": x.kind, "prompt": x.question, "expected": x.answer}
            for i, x in enumerate(items)
        ],
        "runs": {},
    }
    asked: dict[str, list[dict[str, Any]]] = {}
    for name, arguments in RUNS.items():
        command, seconds = evaluate(name, arguments)
        asked[name] = read_samples(DATA / name)
        own = own_answers(items, arguments)
        record["runs"][name] = outcome(items, asked, name, own) | {
            "command": command,
            "seconds": round(seconds, 1),
        }
        print(f"{name}: {record['runs'][name]['accuracy']:.3f}", file=sys.stderr)
    path = Path(given.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def write_questions(items: list[Item]) -> None:
    """A JSON object per line, and a PNG file per picture."""
    DATA.mkdir(parents=True, exist_ok=True)
    rows = []
    for item in items:
        picture = DATA / f"{item.image}.png"
        Image.fromarray(np.asarray(item.pixels)).save(picture)
        rows.append(
            {"question": item.question, "answer": item.answer, "group": item.kind}
            | {"image": item.image, "picture": str(picture)}
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (DATA / "questions.jsonl").write_text(text)


def evaluate(name: str, arguments: dict[str, Any]) -> tuple[str, float]:
    """Runs lmms-eval; returns its command, paths shortened, and how long it took."""
    for old in (DATA / name).rglob("*_samples_*.jsonl"):
        old.unlink()
    told = {"pretrained": checkpoint_dir(), "dtype": "float32", "device_map": "cpu", **arguments}
    words = ["--model", "llava_hf", "--model_args", ",".join(f"{k}={v}" for k, v in told.items())]
    words += ["--include_path", str(HERE), "--tasks", TASK, "--device", "cpu"]
    words += ["--batch_size", "1", "--log_samples", "--output_path", str(DATA / name)]
    started = time.time()
    run = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *words],
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(run.stdout[-4000:] + run.stderr[-4000:])
    shown = " ".join(["python -m lmms_eval", *words])
    shown = shown.replace(str(HERE), "docs/studies/lmms_eval")
    shown = shown.replace(str(checkpoint_dir()), "tokenreduce/embedded/checkpoint")
    return shown, time.time() - started


def own_answers(items: list[Item], arguments: dict[str, Any]) -> list[str]:
    """What our own evaluation gets from the same model under the same settings."""
    folder = checkpoint_dir()
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    settings, _ = split_settings(arguments)
    if settings is None:
        return answers(model, processor, items)
    with settings.apply(model):
        return answers(model, processor, items)


def outcome(
    items: list[Item], asked: dict[str, list[dict[str, Any]]], name: str, own: list[str]
) -> dict[str, Any]:
    """Accuracy, the answers, and what they are compared with."""
    rows, full = asked[name], asked["full"]
    kinds, pictures = [x.kind for x in items], np.array([x.image for x in items])
    right, before = (np.array([row["correct"] for row in run]) for run in (rows, full))
    said = [row["answer"] for row in rows]
    found = {
        **shares(right, kinds, pictures),
        "same_questions_as_full": [r["prompt"] for r in rows] == [r["prompt"] for r in full],
        "own_evaluation_accuracy": round(
            float(np.mean([a == x.answer for x, a in zip(items, own, strict=True)])), 4
        ),
        "answers_equal_to_own_evaluation": sum(
            a.strip() == b for a, b in zip(said, own, strict=True)
        ),
        "answers": said,
    }
    if name != "full":
        p = sign_flip(right.astype(float) - before, pictures)
        found["to_full"] = difference(right, before, pictures) | {"p": p}
    return found


if __name__ == "__main__":
    main()
