"""The pictures in what a processor made: grids of patches, from shapes and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenreduce.cost.entries import read
from tokenreduce.cost.tower_sizes import Grid, TowerShape, tower_of


def grids_of(config: Any, inputs: Mapping[str, Any]) -> tuple[Grid, ...]:
    """The pictures that a model's tower is given, from the inputs that its processor made.

    Tiles that are all zero are padding, which the models leave out.

    Args:
        config: a transformers configuration or its dict.
        inputs: with `pixel_values`, `pixel_values_videos` and the sizes that come with them.

    Raises:
        ValueError: a tower of an unknown kind.
    """
    tower = tower_of(config)
    return tuple(
        grid
        for name, video in (("pixel_values", False), ("pixel_values_videos", True))
        if inputs.get(name) is not None
        for grid in _grids(config, tower, inputs, name, video)
    )


def _grids(
    config: Any, tower: TowerShape, inputs: Mapping[str, Any], name: str, video: bool
) -> Iterator[Grid]:
    pixels, sizes = inputs[name], inputs.get(f"{'video' if video else 'image'}_grid_thw")
    if sizes is not None:
        for frames, rows, columns in sizes.tolist():
            yield Grid(rows, columns, frames, video)
        return
    side = read(read(config, "vision_config"), "patch_size")
    if tower.sight == "call":  # padded to one size; how large they are is told next to them
        for height, width in inputs["image_sizes"].tolist():
            yield Grid(height // side, width // side, video=video)
        return
    height, width = pixels.shape[-2:]
    if side is None and tower.side is not None:  # timm's name says it
        one = Grid(*tower.side, video=video)
    else:
        down, across = (side, side) if isinstance(side, int) else side
        one = Grid(height // down, width // across, video=video)
    tiles = pixels.flatten(0, 1) if pixels.dim() == 5 else pixels
    shown = tiles.flatten(1).any(1).sum() if pixels.dim() == 5 else len(tiles)
    yield from (one for _ in range(int(shown)))
