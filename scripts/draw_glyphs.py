"""Draws the sheet of glyphs that the rendered scenes are made of, as was done once.

`python scripts/draw_glyphs.py DejaVuSans-Bold.ttf`; a sheet from another font or rasteriser is
another task, and the shipped checkpoint must then be trained again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tokenreduce.data.glyphs import CELL, GLYPHS, HEIGHTS, SHEET


def draw_sheet(font: Path, target: Path = SHEET, oversampling: int = 4) -> None:
    """Draws every glyph at every size, coverage as brightness."""
    sheet = Image.new("L", (CELL * len(GLYPHS), CELL * len(HEIGHTS)), 0)
    for row, height in enumerate(HEIGHTS):
        face = ImageFont.truetype(str(font), height * oversampling)
        for column, character in enumerate(GLYPHS):
            left, top, _, _ = face.getbbox(character)
            cell = Image.new("L", (CELL * oversampling, CELL * oversampling), 0)
            ImageDraw.Draw(cell).text((-left, -top), character, font=face, fill=255)
            sheet.paste(
                cell.resize((CELL, CELL), Image.Resampling.BOX), (column * CELL, row * CELL)
            )
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    draw_sheet(Path(sys.argv[1]))
