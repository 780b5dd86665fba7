"""A profile as a picture: what a stop costs at each layer, and where the schedules stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenreduce.output import draws, figure


def draw(numbers: Mapping[str, Any], path: Path) -> Path | None:
    """Loss of one stop and tokens of two schedules, by layer; None without matplotlib.

    Args:
        numbers: of `result.json`.
        path: of the picture.
    """
    if not draws():
        return None
    from matplotlib import colormaps

    size: dict[str, Any] = {"figsize": (7, 6), "sharex": True, "height_ratios": (3, 2)}
    with figure(path, 2, dpi=120, **size) as (_, ((above,), (below,))):
        keeps = numbers["keeps"]
        for i, keep in enumerate(keeps):
            rows = [cell for cell in numbers["sensitivity"] if cell["stops"][0][1] == keep]
            rows.sort(key=lambda cell: cell["stops"][0][0])
            colour = colormaps["viridis"](i / max(1, len(keeps)))
            label = f"{keep:.0%} left" if keep else "none left"
            above.plot(
                [cell["stops"][0][0] for cell in rows],
                [cell["jsd"] for cell in rows],
                "o-",
                color=colour,
                linewidth=1.2,
                markersize=3,
                label=label,
            )
        above.set(ylabel="JSD from the whole model, bits", title="one stop, at each layer")
        above.grid(alpha=0.25)
        above.legend()
        for name, style in (("found", "-"), ("given", "--")):
            share = numbers[name]["flops_share"]
            below.step(
                range(numbers["depth"] + 1),
                _tokens(numbers[name]["stops"], numbers["depth"]),
                style,
                where="post",
                label=f"{name}: {share:.1%} of the FLOPs",
            )
        below.set(xlabel="layer", ylabel="share of the visual tokens", ylim=(-0.03, 1.05))
        below.grid(alpha=0.25)
        below.legend()
    return path


def _tokens(stops: Sequence[Sequence[float]], depth: int) -> list[float]:
    """The share that each layer works on; the last one twice, for the end of its step."""
    rows = [1.0] * (depth + 1)
    for layer, keep in stops:
        rows[int(layer) :] = [keep] * (depth + 1 - int(layer))
    return rows
