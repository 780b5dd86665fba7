"""Draws which patches stay: the picture with everything dropped darkened, one panel per stage.

Shapes: n visual tokens of one picture, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

DARK = 0.18  # brightness of a dropped patch
SIDE = 288  # pixels of a panel's longer side
MARGIN, CAPTION = 8, 22
COLUMNS = 6

Boxes = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Stage:
    """What stays from one layer on: indices into the picture's own tokens, and a caption."""

    kept: Sequence[int]
    caption: str


def overlay(image: Image.Image, boxes: Boxes, kept: Sequence[int]) -> Image.Image:
    """`image` with the patches of dropped tokens darkened.

    A pixel that several tokens see (the views of LLaVA-NeXT) is as bright as the share of them
    that stay. What no token sees, because preprocessing cut it away, is grey.

    Args:
        image: the original picture.
        boxes: (n, 4) left, top, right, bottom of every token, 0 to 1 of the picture; empty boxes
            (tokens that carry no picture) draw nothing.
        kept: the tokens that stay.
    """
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    stays = np.zeros(len(boxes))
    stays[list(kept)] = 1
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height, width = pixels.shape[:2]
    seen, bright = np.zeros((height, width)), np.zeros((height, width))
    scaled = np.rint(boxes * [width, height, width, height]).astype(int)
    for (left, top, right, bottom), stay in zip(scaled, stays, strict=True):
        area = (slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0)))
        seen[area] += 1
        bright[area] += stay
    light = DARK + (1 - DARK) * bright / np.maximum(seen, 1)
    grey = pixels.mean(axis=2, keepdims=True) * DARK + 128 * (1 - DARK)
    shown = np.where(seen[..., None] > 0, pixels * light[..., None], grey)
    return Image.fromarray(shown.round().astype(np.uint8))


def strip(image: Image.Image, boxes: Boxes, stages: Sequence[Stage]) -> Image.Image:
    """One captioned panel per stage, in reading order, at most six in a row."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    shown = image.convert("RGB").resize(size, smooth)
    columns = min(COLUMNS, max(1, len(stages)))
    cell = (SIDE + MARGIN, size[1] + CAPTION + MARGIN)
    rows = math.ceil(len(stages) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, stage in enumerate(stages):
        x, y = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        sheet.paste(overlay(shown, boxes, stage.kept), (x + (SIDE - size[0]) // 2, y))
        draw.text((x + SIDE / 2, y + size[1] + 4), stage.caption, "black", font, anchor="ma")
    return sheet


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Several strips, one below the other: one for each picture of a prompt."""
    width = max(sheet.width for sheet in sheets)
    whole = Image.new("RGB", (width, sum(sheet.height for sheet in sheets)), "white")
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole
