"""How many tokens go through every layer, as the bars of a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 640, 200
LEFT, BOTTOM, TOP = 44, 24, 10


@dataclass(frozen=True)
class Bar:
    """One decoder layer: places in the drawing's units, and what to say of it."""

    layer: int
    x: float
    width: float
    text_y: float
    text_height: float
    visual_y: float
    visual_height: float
    full_y: float
    full_height: float
    stage: int
    says: str
    label: str


@dataclass(frozen=True)
class Chart:
    """The bars of all layers, lines at round numbers, and one sentence for who cannot see it.

    A bar's `stage` is the layer of the stop that it is behind; -1 in front of all of them.
    """

    bars: list[Bar]
    lines: list[tuple[float, str]]
    says: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    base: int = HEIGHT - BOTTOM


def chart(report: Mapping[str, Any], sample: int = 0) -> Chart:
    """The tokens of every layer of one sample.

    Args:
        report: `Reduction.report.to_dict()`.
        sample: which one of the batch.
    """
    layers = [row[sample] for row in report["tokens_per_layer"]]
    full = report["visual_tokens"][sample]
    text, stage, rows = report["text_tokens"][sample], -1, []
    stops = {stop["layer"]: stop["kept"][sample] for stop in report["stops"]}
    for layer, total in enumerate(layers):
        stage = layer if layer in stops else stage
        rows.append((total - text, stage))
    top = max(full + text, 1)
    scale = (HEIGHT - BOTTOM - TOP) / top
    step = (WIDTH - LEFT) / max(len(rows), 1)
    base = HEIGHT - BOTTOM
    every = max(1, -(-len(rows) // 16))  # labels that have room
    bars = [
        Bar(
            layer=layer,
            x=round(LEFT + layer * step + step * 0.1, 2),
            width=round(step * 0.8, 2),
            text_y=round(base - text * scale, 2),
            text_height=round(text * scale, 2),
            visual_y=round(base - (text + visual) * scale, 2),
            visual_height=round(visual * scale, 2),
            full_y=round(base - (text + full) * scale, 2),
            full_height=round((text + full) * scale, 2),
            stage=stage,
            says=f"layer {layer}: {visual} visual and {text} text tokens",
            label=str(layer) if layer % every == 0 else "",
        )
        for layer, (visual, stage) in enumerate(rows)
    ]
    lines = [(round(base - n * scale, 2), str(n)) for n in _round(top)]
    parts = [f"{full} visual tokens", *(f"{n} from layer {i} on" for i, n in stops.items())]
    return Chart(bars, lines, f"Tokens in each of {len(rows)} layers: {', '.join(parts)}.")


def _round(top: int) -> list[int]:
    """Two to five round numbers up to `top`."""
    for step in (10**power * one for power in range(12) for one in (1, 2, 5)):
        if top // step <= 4:
            return list(range(0, top + 1, step))
    return [0]
