"""How many tokens go through every layer, as the bars of a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LABELS = 16  # below the bars that have room


@dataclass(frozen=True)
class Bar:
    """One decoder layer: how high its bars are, in per cent, and what to say of it.

    `stage` is the layer of the stop that it is after; -1 in front of all of them.
    """

    label: str
    says: str
    stage: int
    text: float
    visual: float
    full: float


@dataclass(frozen=True)
class Chart:
    """The bars of all layers, lines at round numbers, and one sentence in place of the picture."""

    bars: list[Bar]
    lines: list[tuple[float, str]]
    says: str


def chart(report: Mapping[str, Any], sample: int = 0) -> Chart:
    """The tokens of every layer of one sample.

    Args:
        report: `Reduction.report.to_dict()`.
        sample: which one of the batch.
    """
    layers = [row[sample] for row in report["tokens_per_layer"]]
    full, text = report["visual_tokens"][sample], report["text_tokens"][sample]
    stops = {stop["layer"]: stop["kept"][sample] for stop in report["stops"]}
    stage, rows = -1, []
    for layer, total in enumerate(layers):
        stage = layer if layer in stops else stage
        rows.append((total - text, stage))
    top = max(full + text, 1)
    every = max(1, -(-len(rows) // LABELS))
    bars = [
        Bar(
            label=str(layer) if layer % every == 0 else "",
            says=f"layer {layer}: {visual} visual and {text} text tokens",
            stage=stage,
            text=round(100 * text / top, 2),
            visual=round(100 * (text + visual) / top, 2),
            full=round(100 * (text + full) / top, 2),
        )
        for layer, (visual, stage) in enumerate(rows)
    ]
    parts = [f"{full} visual tokens", *(f"{n} from layer {i} on" for i, n in stops.items())]
    says = f"Tokens in each of {len(rows)} layers: {', '.join(parts)}."
    return Chart(bars, [(round(100 * n / top, 2), str(n)) for n in _round(top)], says)


def _round(top: int) -> list[int]:
    """Two to five round numbers up to `top`."""
    steps = (10**power * one for power in range(12) for one in (1, 2, 5))
    step = next(step for step in steps if top // step <= 4)
    return list(range(0, top + 1, step))
