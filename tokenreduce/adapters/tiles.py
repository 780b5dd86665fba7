"""How tiles of a picture lie side by side, found by comparing them with its thumbnail.

Some processors cut a picture into tiles, add a thumbnail, and do not say how many rows and columns
of tiles there are. The pixels say it: laid out rightly, the tiles look like the thumbnail.
Shapes: t tiles, n tokens of a tile, s x s = n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenreduce.geometry import Box, Picture, moved

COLOUR = "colour"
"""Among `Picture.measures`: (n, 3) the mean colour of the pixels that a token covers."""
NEAR = 0.1
"""Share of the thumbnail's variance by which tiles may differ from it, laid out rightly."""
CLEAR = 0.5
"""Share of the next best layout's difference that the best may have."""


def tile(pixels: Tensor, tokens: int) -> Picture:
    """A square grid of `tokens` over one view, `pixels` (3, height, width), with their colours."""
    picture = Picture.unknown(tokens)
    side = math.isqrt(tokens)
    if side * side != tokens:
        return picture
    colour = torch.nn.functional.adaptive_avg_pool2d(pixels.detach().float(), side)
    return replace(picture, measures={COLOUR: colour.flatten(1).T.cpu()})  # sync: once per view


def from_tiles(tiles: Sequence[Picture], thumbnail: int) -> Picture:
    """One picture of its tiles and their thumbnail.

    Where the pixels tell the layout, boxes are fractions of the whole picture. Where they do not
    (a picture of one colour, or only a part of the tiles), a tile's tokens have no box: it is not
    known which part of the picture they show.

    Args:
        tiles: of one picture, as the processor has put them, with the thumbnail among them.
        thumbnail: index of the thumbnail, 0 or -1.

    Returns:
        Tile 0 is the thumbnail, or a picture's only view; the others count from 1 in their order.
    """
    tiles = list(tiles)
    if len(tiles) == 1:
        return _cleared(tiles[0], 0)
    small = tiles.pop(thumbnail)
    found = layouts(small, tiles)
    views = []
    for i, one in enumerate(tiles):
        view = _cleared(one, i + 1)
        if len(found) == 1:
            rows, columns = found[0]
            within = i % columns / columns, i // columns / rows
            view = _within(view, (*within, within[0] + 1 / columns, within[1] + 1 / rows))
        else:
            view = replace(view, box=torch.zeros_like(view.box))
        views.append(view)
    if found:
        last = _cleared(small, 0)
    else:
        last = replace(_cleared(small, len(tiles) + 1), box=torch.zeros_like(small.box))
    views.insert(len(views) if thumbnail else 0, last)
    return Picture.join(views)


def layouts(thumbnail: Picture, tiles: Sequence[Picture]) -> list[tuple[int, int]]:
    """Rows and columns in which the tiles look like their thumbnail: none, one, or several."""
    if any(COLOUR not in one.measures or len(one) != len(thumbnail) for one in (thumbnail, *tiles)):
        return []
    side = math.isqrt(len(thumbnail))
    if side * side != len(thumbnail):
        return []
    aim, *parts = (x.measures[COLOUR].T.reshape(3, side, side) for x in (thumbnail, *tiles))
    near = float(aim.flatten(1).var(dim=1, correction=0).mean()) * NEAR + 1e-6
    off = {}
    for rows in (n for n in range(1, len(tiles) + 1) if len(tiles) % n == 0):
        columns = len(tiles) // rows
        lines = [torch.cat(parts[i : i + columns], dim=2) for i in range(0, len(parts), columns)]
        laid = torch.cat(lines, dim=1).reshape(3, side, rows, side, columns).mean(dim=(2, 4))
        error = float((laid - aim).square().mean())
        if error <= near:
            off[rows, columns] = error
    if len(off) > 1:
        best, second = sorted(off.values())[:2]
        if best <= CLEAR * second:
            off = {key: error for key, error in off.items() if error == best}
    return list(off)


def _cleared(one: Picture, number: int) -> Picture:
    """A tile under its number, without its colours."""
    measures = {name: x for name, x in one.measures.items() if name != COLOUR}
    return replace(one, tile=torch.full_like(one.tile, number), measures=measures)


def _within(one: Picture, box: Box) -> Picture:
    return replace(one, box=moved(one.box, box))
