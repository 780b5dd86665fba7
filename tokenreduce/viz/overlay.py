"""Draws what a reduction does to a picture: what stays, what is merged, and how tokens scored.

What is dropped is darkened; tokens that were merged into one get one colour and an outline around
them; scores are drawn as ranks, so that one large score does not make all others look alike.

Shapes: n visual tokens of one picture, H x W pixels.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import rankdata

from tokenreduce.data.images import in_rgb

DARK = 0.18  # brightness of a dropped patch
SIDE = 288  # pixels of a panel's longer side
MARGIN, CAPTION = 8, 22
COLUMNS = 6
TINT = 0.38  # of the group's colour in its patches
GLOW = 0.72  # of the score's colour in a patch
LINES = 320  # of an outline's width in a picture's
TURN = 0.618034  # of the colour circle, from one group to the next: neighbours in number differ
HEAT = ("#000004", "#280b54", "#65156e", "#9f2a63", "#d44842", "#f57d15", "#fac127", "#fcffa4")
"""Colours of scores, from the lowest to the highest rank; evenly spaced, mixed between."""

Boxes = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Stage:
    """What stays of a picture from one layer on.

    Attributes:
        kept: indices into the picture's own tokens.
        caption: what to write below.
        group: per token, the number of the kept token that contains it, -1 where it was dropped;
            two tokens of one number were merged. None where nothing was.
        score: per token, what it was ranked by at this stage; NaN where it was not there, or is no
            part of the picture. None where nothing was ranked.
        layer: at whose input this came about; None for the whole picture.
    """

    kept: Sequence[int]
    caption: str
    group: Sequence[int] | None = None
    score: Sequence[float] | None = None
    layer: int | None = None


def overlay(
    image: Image.Image, boxes: Boxes, kept: Sequence[int], group: Sequence[int] | None = None
) -> Image.Image:
    """`image` with the patches of dropped tokens darkened, and merged ones in one colour.

    A pixel that several tokens see (the views of LLaVA-NeXT) is as bright as the share of them
    that stay. What no token sees, because preprocessing cut it away, is grey.

    Args:
        image: the original picture.
        boxes: (n, 4) left, top, right, bottom of every token, 0 to 1 of the picture; empty boxes
            (tokens that carry no picture) draw nothing.
        kept: the tokens that stay.
        group: as in `Stage`; tokens of a group are bright, wherever the group now lies.
    """
    return _under(image, veil(boxes, kept, group, image.size))


def heat(image: Image.Image, boxes: Boxes, score: Sequence[float]) -> Image.Image:
    """`image` in grey under the colours of its tokens' scores, dark where there are none.

    Args:
        image: the original picture.
        boxes: as in `overlay`.
        score: as in `Stage`.
    """
    return _under(in_rgb(image).convert("L"), glow(boxes, ranks(score).tolist(), image.size))


def veil(
    boxes: Boxes, kept: Sequence[int], group: Sequence[int] | None, size: tuple[int, int]
) -> Image.Image:
    """What `overlay` lays over a picture of `size` (width, height), mostly transparent."""
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    stays = np.zeros(len(boxes))
    if group is None:
        stays[list(kept)] = 1
    else:
        stays[np.asarray(group) >= 0] = 1
    seen, bright = _sums(boxes, stays, size)
    drawn = np.zeros((*seen.shape, 4), dtype=np.uint8)
    drawn[seen == 0, :3] = 128
    drawn[..., 3] = np.rint(255 * (1 - DARK) * (1 - bright / np.maximum(seen, 1)))
    if group is not None:
        _draw_groups(drawn, boxes, np.asarray(group))
    return Image.fromarray(drawn)


def glow(boxes: Boxes, ranked: Sequence[float], size: tuple[int, int]) -> Image.Image:
    """What `heat` lays over a grey picture of `size` (width, height), from the `ranks`."""
    boxes, rank = np.asarray(boxes, dtype=float).reshape(-1, 4), np.asarray(ranked)
    there = np.isfinite(rank)
    seen, height = _sums(boxes[there], rank[there], size)
    drawn = np.zeros((*seen.shape, 4), dtype=np.uint8)
    drawn[..., 3] = round(255 * (1 - DARK))
    drawn[seen > 0, :3] = np.rint(colour_of(height[seen > 0] / seen[seen > 0]))
    drawn[seen > 0, 3] = round(255 * GLOW)
    return Image.fromarray(drawn)


def dotted(drawn: Image.Image, boxes: Boxes, stage: Stage) -> Image.Image:
    """A veil with a dot on every kept token that contains others: the place where it lies."""
    many, draw = Counter(stage.group), ImageDraw.Draw(drawn)
    for i in stage.kept:
        if stage.group is not None and many[stage.group[i]] > 1:
            left, top, right, bottom = areas(boxes[i], drawn.size)[0]
            centre = ((left + right) / 2, (top + bottom) / 2)
            radius = max(2, min((right - left) / 8, drawn.width / 90))
            draw.circle(centre, radius, "white", "#000000a0")
    return drawn


def _under(image: Image.Image, drawn: Image.Image) -> Image.Image:
    return Image.alpha_composite(in_rgb(image).convert("RGBA"), drawn).convert("RGB")


def ranks(score: Sequence[float]) -> npt.NDArray[np.float64]:
    """(n,) the place of every score among the finite ones: 0 the lowest, 1 the highest.

    Equal scores share the middle of their places. Others are NaN.
    """
    values = np.asarray(score, dtype=float)
    found = np.full(len(values), np.nan)
    there = np.isfinite(values)
    n = int(there.sum())
    found[there] = (rankdata(values[there]) - 1) / (n - 1) if n > 1 else 1.0
    return found


def colour_of(rank: npt.NDArray[np.floating[Any]]) -> Pixels:
    """(…, 3) the colours, 0 to 255, of ranks from 0 to 1."""
    table = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in HEAT])
    at = np.linspace(0, 1, len(table))
    return np.stack([np.interp(rank, at, table[:, i]) for i in range(3)], axis=-1)


def tint(number: int) -> tuple[int, int, int]:
    """The colour of the group of this number, 0 to 255."""
    red, green, blue = colorsys.hsv_to_rgb(number * TURN % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def areas(boxes: Boxes, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """(n, 4) left, top, right, bottom in pixels of a picture of `size` (width, height)."""
    width, height = size
    scaled = np.rint(np.asarray(boxes, dtype=float).reshape(-1, 4) * [width, height, width, height])
    found: npt.NDArray[np.int64] = scaled.astype(np.int64).clip(0, [width, height, width, height])
    return found


def strip(
    image: Image.Image, boxes: Boxes, stages: Sequence[Stage], heated: bool = False
) -> Image.Image:
    """One captioned panel per stage, in reading order, at most six in a row.

    With `heated`, the scores by which each stage was chosen are drawn below it.
    """
    shown = fitted(image, SIDE)
    size = shown.size
    columns = min(COLUMNS, max(1, len(stages)))
    line = 2 if heated else 1
    cell = (SIDE + MARGIN, line * (size[1] + CAPTION + MARGIN))
    rows = math.ceil(len(stages) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, stage in enumerate(stages):
        x, y = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        panels = [(overlay(shown, boxes, stage.kept, stage.group), stage.caption)]
        if heated and stage.score is not None:
            panels.append((heat(shown, boxes, stage.score), f"scores at layer {stage.layer}"))
        for j, (panel, caption) in enumerate(panels):
            top = y + j * (size[1] + CAPTION + MARGIN)
            sheet.paste(panel, (x + (SIDE - size[0]) // 2, top))
            draw.text((x + SIDE / 2, top + size[1] + 4), caption, "black", font, anchor="ma")
    return sheet


def fitted(image: Image.Image, side: int) -> Image.Image:
    """`image` with a longer side of `side` pixels: smoothed where it shrinks, else in squares."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return in_rgb(image).resize(size, smooth)


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Several strips, one below the other: one for each picture of a prompt."""
    width = max(sheet.width for sheet in sheets)
    whole = Image.new("RGB", (width, sum(sheet.height for sheet in sheets)), "white")
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole


def _sums(
    boxes: Boxes, values: npt.NDArray[np.floating[Any]], size: tuple[int, int]
) -> tuple[Pixels, Pixels]:
    """(H, W) how many boxes cover a pixel, and the sum of their values."""
    width, height = size
    seen, total = np.zeros((2, height, width), dtype=np.float32)
    for (left, top, right, bottom), value in zip(areas(boxes, size), values, strict=True):
        area = (slice(top, bottom), slice(left, right))
        seen[area] += 1
        total[area] += value
    return seen, total


def _draw_groups(drawn: npt.NDArray[np.uint8], boxes: Boxes, group: npt.NDArray[np.int64]) -> None:
    """Gives groups of two and more tokens their colour in pixels (H, W, 4), and outlines them."""
    height, width = drawn.shape[:2]
    labels = np.full((height, width), -1)
    many = np.bincount(group[group >= 0], minlength=int(group.max(initial=0)) + 1)
    for (left, top, right, bottom), number in zip(
        areas(boxes, (width, height)), group, strict=True
    ):
        labels[top:bottom, left:right] = number if number >= 0 and many[number] > 1 else -1
    merged = labels >= 0
    drawn[merged, :3] = np.array([tint(number) for number in range(len(many))])[labels[merged]]
    drawn[merged, 3] = round(255 * TINT)
    edge, line = np.zeros_like(merged), max(1, width // LINES)
    edge[:, line:] |= labels[:, line:] != labels[:, :-line]
    edge[line:] |= labels[line:] != labels[:-line]
    drawn[edge] = 255
