"""What the any-resolution families share: coordinates traced through the model's own packing.

A picture becomes a whole view at low resolution and a grid of tiles, which `pack_image_features`
joins, cuts the padding off, may scale down, and ends every row of with a newline token. It is given
coordinates in place of features, and says of every token where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.geometry import Picture, boxes
from tokenreduce.tower import Part

NEWLINE = -1.0
STEP = 1e-3
"""Coordinates closer than this are the same: scaling down makes them fractions."""

Pack = Callable[..., Any]


def traced(base: Part, size: Any, pack: Pack, *, tiled: bool = True) -> Picture:
    """The picture of one image.

    Args:
        base: the multimodal module.
        size: height and width of the original in pixels.
        pack: the model's `pack_image_features` with its options; called with a list of features
            (tiles, patches, 3), the sizes and the newline.
        tiled: whether the image was cut into tiles, or is a single view.

    Returns:
        Tile 0 is the whole image, tile 1 the grid of tiles, joined and without its padding; a
        newline ends the row of the token before it. Patches are counted from this image's first.
    """
    vision = base.config.vision_config
    side = vision.image_size // vision.patch_size
    size = torch.as_tensor(size).cpu()  # sync: once per encoder call
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    views = [torch.stack([torch.zeros_like(y), y, x], dim=1)]
    across = 1
    if tiled:
        down, across = tiles(base.config, size)
        views += [
            torch.stack([torch.ones_like(y), y + side * i, x + side * j], dim=1)
            for i in range(down)
            for j in range(across)
        ]
    newline = torch.full((3,), NEWLINE)
    packed, _ = pack([torch.stack(views).float()], size[None], image_newline=newline)
    return replace(_picture(packed[0]), patches=_patches(packed[0], side, across)[:, None])


def tiles(config: Any, size: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles that an image is cut into."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(
        size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    return int(rows), int(columns)


def _patches(packed: Tensor, side: int, across: int) -> Tensor:
    """(n,) the patch of every token, the nearest where coordinates are fractions; -1 for newlines.

    The tower sees one view after the other, each with `side` rows and columns of patches.
    """
    tile, y, x = packed.round().long().unbind(1)
    view = torch.where(tile == 0, 0, 1 + y // side * across + x // side)
    return torch.where(tile < 0, -1, (view * side + y % side) * side + x % side)


def _picture(packed: Tensor) -> Picture:
    """The picture of one image, from its tokens' traced coordinates (n, 3)."""
    separator = packed[:, 0] < 0
    index = torch.arange(len(packed))
    # a newline ends the row of the token before it, which is never a newline itself
    tile, y, x = packed[torch.where(separator, index - 1, index)].unbind(1)
    tile = tile.round().long()
    row, column = torch.zeros_like(tile), torch.zeros_like(tile)
    box = torch.zeros(len(packed), 4)
    for view in sorted(set(tile.tolist())):
        here = tile == view
        row[here], column[here] = _rank(y[here]), _rank(x[here])
        rows, columns = int(row[here].max()) + 1, int(column[here].max()) + 1
        box[here] = boxes(row[here], column[here], rows, columns)
    box[separator] = 0.0
    return Picture(torch.zeros_like(tile), tile, row, column + separator.long(), separator, box)


def _rank(x: Tensor) -> Tensor:
    """(n,) the number of each coordinate among those that occur, from 0."""
    values, at = (x / STEP).round().sort()
    number = torch.nn.functional.pad((values.diff() > 0).long().cumsum(dim=0), (1, 0))
    return torch.empty_like(number).scatter_(0, at, number)
