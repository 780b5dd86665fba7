"""What the any-resolution families share: coordinates traced through the model's own packing.

A picture becomes a whole view at low resolution and a grid of tiles, which `pack_image_features`
joins, cuts the padding off, may scale down, and ends every row of with a newline token. It is given
coordinates in place of features, and says of every token where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapter import Part
from tokenreduce.geometry import Picture, boxes

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
        newline ends the row of the token before it.
    """
    vision = base.config.vision_config
    side = vision.image_size // vision.patch_size
    size = torch.as_tensor(size).cpu()
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    views = [torch.stack([torch.zeros_like(y), y, x], dim=1)]
    if tiled:
        down, across = _tiles(base.config, size)
        views += [
            torch.stack([torch.ones_like(y), y + side * i, x + side * j], dim=1)
            for i in range(down)
            for j in range(across)
        ]
    newline = torch.full((3,), NEWLINE)
    packed, _ = pack([torch.stack(views).float()], size[None], image_newline=newline)
    return _picture(packed[0])


def _tiles(config: Any, size: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles that an image is cut into."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(
        size, config.image_grid_pinpoints, config.vision_config.image_size
    )
    return rows, columns


def _picture(packed: Tensor) -> Picture:
    """The picture of one image, from its tokens' traced coordinates (n, 3)."""
    separator = packed[:, 0] < 0
    index = torch.arange(len(packed))
    # a newline ends the row of the token before it, which is never a newline itself
    tile, y, x = packed[torch.where(separator, index - 1, index)].unbind(1)
    tile = tile.round().long()
    row, column = torch.zeros_like(tile), torch.zeros_like(tile)
    box = torch.zeros(len(packed), 4)
    for view in tile.unique().tolist():
        here = tile == view
        row[here], column[here] = _rank(y[here]), _rank(x[here])
        rows, columns = int(row[here].max()) + 1, int(column[here].max()) + 1
        box[here] = boxes(row[here], column[here], rows, columns)
    box[separator] = 0.0
    return Picture(torch.zeros_like(tile), tile, row, column + separator.long(), separator, box)


def _rank(x: Tensor) -> Tensor:
    """(n,) the number of each coordinate among those that occur, from 0."""
    return torch.unique((x / STEP).round(), return_inverse=True)[1]
