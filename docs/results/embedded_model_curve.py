"""Draws embedded_model_curve.png from the training log that ships with the checkpoint.

python docs/results/embedded_model_curve.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
LOG = HERE.parents[1] / "tokenreduce" / "embedded" / "checkpoint" / "training_log.jsonl"


def main() -> None:
    rows = [json.loads(line) for line in LOG.read_text().splitlines()]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.4), width_ratios=(1, 2.2), layout="constrained"
    )
    panels = ((left, ("tower",), "vision tower"), (right, ("language",), "decoder"))
    for axes, stages, title in panels:
        own = [row for row in rows if row["stage"] in stages and "heldout" in row]
        steps = [row["step"] for row in own]
        for name in [key for key in own[-1]["heldout"] if key != "macro"]:
            shares = [row["heldout"].get(name, float("nan")) for row in own]
            axes.plot(steps, shares, linewidth=1.2, label=name)
        axes.set(title=title, xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, ncols=2, loc="lower right")
    levels = [row for row in rows if row["stage"] == "language"]
    right.plot(
        [row["step"] for row in levels],
        [row["level"] for row in levels],
        color="black", linestyle=":", linewidth=1, label="difficulty of training",
    )  # fmt: skip
    right.axhline(0.92, color="grey", linewidth=0.6)
    right.legend(fontsize=7, ncols=2, loc="lower right")
    left.set_ylabel("held-out accuracy, full difficulty")
    figure.savefig(HERE / "embedded_model_curve.png", dpi=110)


if __name__ == "__main__":
    main()
