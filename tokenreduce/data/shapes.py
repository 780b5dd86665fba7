"""Procedural scenes: coloured shapes that carry a glyph, on a 4 x 4 grid, sometimes with a word.

A scene is 96 x 96 pixels; each cell is 24 x 24, so a vision tower with 8-pixel patches sees 3 x 3
patches per cell and 144 in all. Everything is drawn with numpy from the glyph sheet: no system
font, no rasteriser, hence the same pixels everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from tokenreduce.data.glyphs import GLYPHS, LETTERS, glyph

SIZE = 96  # pixels per side
CELL = 24
PATCH = 8
GRID = SIZE // CELL
PATCHES = SIZE // PATCH
SHAPES = ("circle", "square", "triangle", "diamond")
COLOURS = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 205, 30),
    "purple": (140, 50, 170),
    "cyan": (40, 195, 205),
}
DARK_INK = ("yellow", "cyan")  # on these a white glyph could not be read
DIAMETERS = {18: 10, 20: 11, 22: 12}  # pixels of a shape -> font size of its glyph
WORD_SHARE = 0.75  # of the scenes that carry a word

# Which glyphs come first where a scene is to have few: digits and letters that look unlike.
GLYPH_ORDER = tuple(sorted(range(len(GLYPHS)), key=lambda number: (number % 4, number)))

Image = npt.NDArray[np.uint8]
Owners = npt.NDArray[np.int64]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """One coloured shape with a glyph inside, at cell (row, column)."""

    shape: str
    colour: str
    glyph: str
    cell: Cell


@dataclass(frozen=True)
class Word:
    """Three letters written in black into one empty cell."""

    letters: tuple[str, str, str]
    cell: Cell


@dataclass(frozen=True)
class Scene:
    """What is to be seen. No two things share a cell."""

    items: tuple[Item, ...]
    word: Word | None

    def at(self, cell: Cell) -> Item | None:
        """The item in a cell, if there is one."""
        return next((item for item in self.items if item.cell == cell), None)


def compose(rng: np.random.Generator, difficulty: float = 1.0, glyphs: int = len(GLYPHS)) -> Scene:
    """Draw a scene: 2-4 items at difficulty 0, 5-10 at difficulty 1, with so many different glyphs.

    Half of the scenes draw colour and shape with replacement, so that counts above one occur and
    some descriptions are ambiguous (no question is then asked by that description).
    """
    fewest, most = 2 + round(3 * difficulty), 4 + round(6 * difficulty)
    number = int(rng.integers(fewest, most + 1))
    cells = rng.permutation(GRID * GRID)
    kinds = rng.permutation(len(SHAPES) * len(COLOURS))
    if rng.random() < 0.5:
        kinds = rng.integers(0, len(kinds), len(kinds))
    pool = sorted(GLYPH_ORDER[:glyphs])
    marks = rng.permutation(glyphs)
    if rng.random() < 0.3:
        marks = rng.integers(0, glyphs, glyphs)
    colours = tuple(COLOURS)
    items = tuple(
        Item(
            shape=SHAPES[kinds[i] % len(SHAPES)],
            colour=colours[kinds[i] // len(SHAPES)],
            glyph=GLYPHS[pool[marks[i % glyphs]]],
            cell=(int(cells[i]) // GRID, int(cells[i]) % GRID),
        )
        for i in range(number)
    )
    word = None
    if rng.random() < WORD_SHARE:
        first, second, third = (LETTERS[k] for k in rng.integers(0, len(LETTERS), 3))
        cell = (int(cells[number]) // GRID, int(cells[number]) % GRID)
        word = Word((first, second, third), cell)
    return Scene(items, word)


def render(scene: Scene, rng: np.random.Generator) -> tuple[Image, Owners]:
    """Draw a scene with jitter of place, size and colour, and pixel noise.

    Returns the image (96, 96, 3) and the owner of each patch (12, 12): 0 for background, i + 1 for
    item i, -1, -2, -3 for the letters of the word.
    """
    background = rng.uniform(195, 250) + rng.uniform(-8, 8, 3)
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = background
    owners = np.zeros((PATCHES, PATCHES), np.int64)
    for number, item in enumerate(scene.items):
        covered = _draw_item(canvas, item, rng)
        owners[covered >= PATCH * PATCH // 4] = number + 1
    if scene.word:
        covered = _draw_word(canvas, scene.word, rng)
        read = covered.max(0) >= 5  # a letter stroke is thin: five pixels of ink show it
        owners[read] = -1 - covered.argmax(0)[read]
    canvas += rng.standard_normal((SIZE, SIZE, 1), np.float32) * 4
    return np.clip(canvas, 0, 255).astype(np.uint8), owners


def _draw_item(
    canvas: npt.NDArray[np.float32], item: Item, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    diameter = tuple(DIAMETERS)[int(rng.integers(len(DIAMETERS)))]
    top = item.cell[0] * CELL + int(rng.integers(0, CELL - diameter + 1))
    left = item.cell[1] * CELL + int(rng.integers(0, CELL - diameter + 1))
    colour = np.clip(np.array(COLOURS[item.colour]) + rng.uniform(-14, 14, 3), 0, 255)
    body = _outline(item.shape, diameter)
    _blend(canvas, top, left, body, colour)
    ink = glyph(item.glyph, DIAMETERS[diameter])
    # A triangle's mass is low: its glyph sits a sixth of the height below the middle.
    middle = top + diameter * (0.67 if item.shape == "triangle" else 0.5)
    ink_top = round(middle - ink.shape[0] / 2)
    ink_left = round(left + (diameter - ink.shape[1]) / 2)
    shade = 0.0 if item.colour in DARK_INK else 255.0
    _blend(canvas, ink_top, ink_left, ink, np.full(3, shade))
    return _ink_per_patch(body > 0.5, top, left)


def _draw_word(
    canvas: npt.NDArray[np.float32], word: Word, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Write the word; returns the ink of each letter per patch (3, 12, 12)."""
    inks = [glyph(letter, 9) for letter in word.letters]
    width = sum(ink.shape[1] for ink in inks) + 2
    height = max(ink.shape[0] for ink in inks)
    top = word.cell[0] * CELL + int(rng.integers(0, CELL - height + 1))
    left = word.cell[1] * CELL + int(rng.integers(0, max(1, CELL - width + 1)))
    left = min(left, SIZE - width)  # three wide letters are a little wider than a cell
    covered = []
    for ink in inks:
        _blend(canvas, top, left, ink, np.full(3, 15.0))
        covered.append(_ink_per_patch(ink > 0.4, top, left))
        left += ink.shape[1] + 1
    return np.stack(covered)


def _blend(
    canvas: npt.NDArray[np.float32],
    top: int,
    left: int,
    coverage: npt.NDArray[np.float32],
    colour: npt.NDArray[np.float64],
) -> None:
    region = canvas[top : top + coverage.shape[0], left : left + coverage.shape[1]]
    region += coverage[..., None] * (colour.astype(np.float32) - region)


def _ink_per_patch(ink: npt.NDArray[np.bool_], top: int, left: int) -> npt.NDArray[np.int64]:
    rows, columns = np.nonzero(ink)
    patch = (rows + top) // PATCH * PATCHES + (columns + left) // PATCH
    return np.bincount(patch, minlength=PATCHES * PATCHES).reshape(PATCHES, PATCHES)


@cache
def _outline(shape: str, diameter: int, oversampling: int = 8) -> npt.NDArray[np.float32]:
    """Coverage of a shape in a square of `diameter` pixels, (diameter, diameter) in [0, 1]."""
    side = diameter * oversampling
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = steps[:, None], steps[None, :]
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.88,
        "triangle": abs(x) <= (y + 1) / 2,
        "diamond": abs(x) + abs(y) <= 1,
    }[shape]
    cells = inside.reshape(diameter, oversampling, diameter, oversampling)
    coverage: npt.NDArray[np.float32] = cells.mean((1, 3), dtype=np.float32)
    coverage.flags.writeable = False
    return coverage
