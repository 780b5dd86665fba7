"""What the studies share: one model, one set of held-out questions, one file of results."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenreduce as tr
from tokenreduce.cost import cost, shape_of
from tokenreduce.data.items import heldout
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.intervals import difference, shares
from tokenreduce.evaluation.scoring import right
from tokenreduce.inference.answer import answers
from tokenreduce.program.result import commit, machine, versions

SEED = 0


class Study:
    """Asks the same questions again and again, and writes what came out after every cell.

    A cell that the results file holds already is not run again: a killed study goes on.
    """

    def __init__(self, name: str, about: str) -> None:
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--model", default=str(checkpoint_dir()), help="checkpoint folder")
        parser.add_argument("--images", type=int, default=60, help="held-out pictures")
        parser.add_argument("--questions", type=int, default=9, help="per picture")
        parser.add_argument("--output", help=f"results file (docs/results/{name}.json)")
        parser.add_argument("--smoke", action="store_true", help="a few pictures, for CI")
        self.given = parser.parse_args()
        if self.given.smoke:
            self.given.images, self.given.questions = 2, 2
        folder = "outputs/smoke" if self.given.smoke else "docs/results"
        self.given.output = self.given.output or f"{folder}/{name}.json"
        self.processor: Any = AutoProcessor.from_pretrained(self.given.model)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            self.given.model, dtype=torch.float32
        ).eval()
        self.shape = shape_of(self.model.config)
        self.visual: int = self.model.config.image_seq_length
        self.items = heldout(SEED, self.given.images, self.given.questions)
        self.kinds = [item.kind for item in self.items]
        self.pictures = np.array([item.image for item in self.items])
        self.path = Path(self.given.output)
        self.record = self._begin(name)
        self.full = self.cell("full", "none", None)

    @property
    def depth(self) -> int:
        """Layers of the decoder."""
        return self.shape.layers

    def cell(self, name: str, strategy: Any, scheduler: Any, seed: int = 0, **more: Any) -> Any:
        """(n,) which answers are right under a reduction; asked unless the file has them."""
        cells = self.record["cells"]
        if name not in cells:
            started = time.time()
            if scheduler is None:
                said = answers(self.model, self.processor, self.items)
            else:
                with tr.reduce(self.model, strategy, scheduler, seed=seed, **more):
                    said = answers(self.model, self.processor, self.items)
            good = right(self.items, said)
            schedule = () if scheduler is None else scheduler
            cells[name] = {
                "strategy": str(strategy),
                "scheduler": str(scheduler),
                "seed": seed,
                **{key: str(value) for key, value in more.items()},
                "flops_share": self.flops(schedule),
                **shares(good, self.kinds, self.pictures),
                "right": "".join("01"[int(x)] for x in good),
                "seconds": round(time.time() - started, 1),
            }
            if name != "full":
                cells[name]["to_full"] = difference(good, self.full, self.pictures)
            self.write()
            print(f"{name}: {cells[name]['accuracy']:.3f}", file=sys.stderr)
        return np.array([x == "1" for x in cells[name]["right"]])

    def flops(self, scheduler: Any) -> float:
        """Share of the decoder's prefill FLOPs, for a prompt of the usual length."""
        return round(cost(self.shape, scheduler, self.visual, self.text).share, 4)

    @property
    def text(self) -> int:
        """Text tokens of a prompt, rounded: what the FLOPs are counted with."""
        return 16

    def write(self) -> None:
        """Writes the results so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.record, indent=1) + "\n")
        partial.replace(self.path)

    def _begin(self, name: str) -> dict[str, Any]:
        head: dict[str, Any] = {
            "study": name,
            "command": f"python docs/studies/{name}.py",
            "arguments": dict(vars(self.given)),
            "model": "embedded" if self.given.model == str(checkpoint_dir()) else self.given.model,
            "questions": len(self.items),
            "pictures": self.given.images,
            "seed": SEED,
            "kinds": "".join(chr(97 + sorted(set(self.kinds)).index(k)) for k in self.kinds),
            "kind_names": sorted(set(self.kinds)),
            "picture_of": self.pictures.tolist(),
            "versions": versions(),
            "machine": machine(),
            "commit": commit(),
        }
        if head["model"] == "embedded":  # a path of this machine says nothing
            head["arguments"].pop("model")
        if self.path.exists():
            found: dict[str, Any] = json.loads(self.path.read_text())
            if found["arguments"] == head["arguments"]:
                return found
            raise SystemExit(f"{self.path} holds another run ({found['arguments']}): move it away")
        return {**head, "cells": {}}
