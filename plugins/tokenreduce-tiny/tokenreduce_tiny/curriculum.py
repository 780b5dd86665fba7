"""How hard the scenes are, decided by how well the model answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

MEMORY = 0.93  # of a running accuracy, per step


@dataclass
class Curriculum:
    """Running loss and accuracies, and the difficulty that follows from them.

    The difficulty `level` rises towards 1 by `step` whenever the running training accuracy of every
    measure in `watch` is above `gate`. Without anything to watch it stays where it started.
    It is part of a training checkpoint (`state`, `restore`): a resumed run goes on as if never
    interrupted.
    """

    measures: tuple[str, ...]
    watch: Sequence[str] = ()
    gate: float = 0.8
    step: float = 0.01
    patience: int = 20  # steps before the first rise: a running accuracy needs some
    level: float = 1.0
    loss: float = math.nan
    running: dict[str, float] = field(default_factory=dict)

    def observe(self, steps: int, loss: float, tallies: torch.Tensor) -> None:
        """Take in one step: its loss and its (2, measures) right answers and answers, all ranks."""
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        right, answers = tallies.double().tolist()
        for name, good, all_ in zip(self.measures, right, answers, strict=True):
            if all_:
                share = good / all_
                self.running[name] = MEMORY * self.running.get(name, share) + (1 - MEMORY) * share
        watched = [self.running.get(name, 0.0) for name in self.watch]
        if watched and steps > self.patience and min(watched) > self.gate:
            self.level = min(1.0, self.level + self.step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must remember, as plain data."""
        return {"level": self.level, "loss": self.loss, "running": dict(self.running)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.level, self.loss = state["level"], state["loss"]
        self.running = dict(state["running"])


def at_level(knots: Sequence[Sequence[float]], level: float) -> float:
    """The value at `level`, linear between `knots` of (level, value)."""
    levels, values = zip(*knots, strict=True)
    return float(np.interp(level, levels, values))


def blend_weights(knots: Sequence[Mapping[str, float]], level: float) -> dict[str, float]:
    """Frequencies of the question types at `level`, linear between knots.

    Each knot names its own `level` and the frequencies there; a type that it leaves out has 0.
    """
    names = dict.fromkeys(name for knot in knots for name in knot if name != "level")
    return {
        name: at_level([(knot["level"], knot.get(name, 0.0)) for knot in knots], level)
        for name in names
    }
