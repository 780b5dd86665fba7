"""Writes the panels of a figure one by one, for papers that arrange them themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenreduce.errors import BadOption
from tokenreduce.files import atomic
from tokenreduce.viz.overlay import fitted, heat, overlay
from tokenreduce.viz.scene import Scene

MOST = 8192  # pixels of a panel's longer side


def write_panels(
    scenes: Sequence[Scene], folder: Path, size: int, heated: bool = False
) -> list[Path]:
    """One PNG for every stage, without a caption: `0.png` is the whole picture.

    Args:
        scenes: the pictures of a question; where there are several, each has a folder of its own.
        folder: is made.
        size: pixels of a panel's longer side.
        heated: also `1_scores.png`, …: what the tokens of a stage were ranked by.

    Returns:
        The files in order.

    Raises:
        ValueError: as `checked_size`.
    """
    size, written = checked_size(size), []
    for number, scene in enumerate(scenes, start=1):
        place = folder if len(scenes) == 1 else folder / str(number)
        place.mkdir(parents=True, exist_ok=True)
        shown = fitted(scene.image, size)
        for i, stage in enumerate(scene.stages):
            panels = {f"{i}.png": overlay(shown, scene.boxes, stage.kept, stage.group)}
            if heated and stage.score is not None:
                panels[f"{i}_scores.png"] = heat(shown, scene.boxes, stage.score)
            for name, panel in panels.items():
                with atomic(place / name) as draft:
                    panel.save(draft, "PNG")
                written.append(place / name)
    return written


def checked_size(size: object) -> int:
    """`size` as a number of pixels.

    Raises:
        ValueError: no whole number above 0, or more than `MOST`.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MOST:
        raise BadOption(
            f"panels={size!r} is no number of pixels from 1 to {MOST}: give panels=512, for example"
        )
    return size
