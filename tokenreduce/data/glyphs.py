"""The twenty glyphs of the rendered scenes, read from a sheet that ships with the package.

Scenes must look the same on every machine, so no font is read at run time: `glyphs.png` was drawn
once from DejaVu Sans Bold (free licence, Bitstream Vera derivative) by `scripts/draw_glyphs.py`,
and each glyph is cut out of it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

DIGITS = tuple("0123456789")
LETTERS = tuple("ACEFHKLPTX")
GLYPHS = DIGITS + LETTERS
HEIGHTS = (9, 10, 11, 12)  # font sizes in pixels, one row of the sheet each
CELL = 12  # pixels per cell of the sheet; a glyph sits in the upper left corner of its cell
SHEET = Path(__file__).with_name("glyphs.png")

Array = npt.NDArray[np.float32]


@cache
def glyph(character: str, height: int) -> Array:
    """Coverage of one character at one font size: (rows, columns) in [0, 1], cut to its ink."""
    row, column = HEIGHTS.index(height) * CELL, GLYPHS.index(character) * CELL
    cell = _sheet()[row : row + CELL, column : column + CELL]
    rows, columns = np.flatnonzero(cell.any(1)), np.flatnonzero(cell.any(0))
    ink = cell[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink.flags.writeable = False
    return ink


@cache
def _sheet() -> Array:
    with Image.open(SHEET, formats=("PNG",)) as image:
        return np.asarray(image.convert("L"), np.float32) / np.float32(255)
