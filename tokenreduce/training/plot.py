"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.integrations.trainer import PREFIX
from tokenreduce.output import draws, figure


def draw(history: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Loss, held-out loss and the share of visual tokens, against steps; None without matplotlib.

    Args:
        history: the trainer's `state.log_history`.
        path: of the picture.
    """
    if not draws():
        return None
    with figure(path, dpi=120, figsize=(7, 3.6)) as (_, ((axes,),)):
        for key, label, style in (("loss", "training", "-"), ("eval_loss", "held-out", "o-")):
            rows = [(row["step"], row[key]) for row in history if key in row]
            if rows:
                axes.plot(*zip(*rows, strict=True), style, linewidth=1.2, markersize=3, label=label)
        axes.set(xlabel="step", ylabel="loss")
        axes.grid(alpha=0.25)
        rows = [
            (r["step"], r[PREFIX + "kept_share"]) for r in history if PREFIX + "kept_share" in r
        ]
        if rows:
            other = axes.twinx()
            other.plot(*zip(*rows, strict=True), ":", color="grey", linewidth=1.2)
            other.set(ylabel="kept share of the visual tokens (dotted)", ylim=(0, 1.05))
        axes.legend()
    return path
