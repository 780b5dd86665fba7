"""Nine types of question about a scene, each with its one right answer.

`read`, `colour_of` and `shape_of` look one thing up by another; `left_of` (all four directions)
takes two steps; `count` and `exist` look at everything; `word` reads three letters in order;
`where` and `what_is_at` go from a thing to its place and back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tokenreduce.data.shapes import COLOURS, GRID, SHAPES, Item, Scene
from tokenreduce.errors import BadOption

ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("first", "second", "third", "fourth")
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


@dataclass(frozen=True)
class Question:
    """A question, its answer (words parted by one space) and its type."""

    type: str
    text: str
    answer: str


Ask = Callable[[Scene, np.random.Generator], Question | None]


def read(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The glyph inside the one item of that colour and shape."""
    item = pick(rng, _described(scene))
    if item is None:
        return None
    return Question("read", f"what is in the {item.colour} {item.shape}?", item.glyph)


def colour_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The colour of the one item that carries that glyph."""
    item = pick(rng, lettered(scene))
    if item is None:
        return None
    return Question("colour_of", f"what colour is the object {item.glyph}?", item.colour)


def shape_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The shape of the one item that carries that glyph."""
    item = pick(rng, lettered(scene))
    if item is None:
        return None
    return Question("shape_of", f"what shape has the {item.glyph}?", item.shape)


def left_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The glyph of the item in the next cell in one of four directions."""
    pairs = []
    for item in _described(scene):
        for direction, (down, right) in DIRECTIONS.items():
            neighbour = scene.at((item.cell[0] + down, item.cell[1] + right))
            if neighbour:
                pairs.append((item, direction, neighbour))
    if not pairs:
        return None
    item, direction, neighbour = pairs[int(rng.integers(len(pairs)))]
    text = f"what is {direction} the {item.colour} {item.shape}?"
    return Question("left_of", text, neighbour.glyph)


def count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The number of items of a shape or of a colour; zero is asked for less often."""
    if rng.random() < 0.5:
        wanted = SHAPES[int(rng.integers(len(SHAPES)))]
        number = sum(item.shape == wanted for item in scene.items)
        text = f"how many {wanted}s are there?"
    else:
        wanted = tuple(COLOURS)[int(rng.integers(len(COLOURS)))]
        number = sum(item.colour == wanted for item in scene.items)
        text = f"how many {wanted} objects are there?"
    if number > 9 or (number == 0 and rng.random() < 0.6):
        return None
    return Question("count", text, str(number))


def exist(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether an item of that colour and shape is there; a "no" shares one of the two with an item.

    "yes" and "no" are about equally frequent.
    """
    item = scene.items[int(rng.integers(len(scene.items)))]
    colour, shape = item.colour, item.shape
    there = {(other.colour, other.shape) for other in scene.items}
    if rng.random() < 0.64:  # a third of these meet an item by chance and are drawn again
        if rng.random() < 0.5:
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
        else:
            colour = tuple(COLOURS)[int(rng.integers(len(COLOURS)))]
        if (colour, shape) in there:
            return None
    answer = "yes" if (colour, shape) in there else "no"
    return Question("exist", f"is there a {colour} {shape}?", answer)


def word(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The three letters of the word, in order."""
    if scene.word is None:
        return None
    return Question("word", "what word is written?", " ".join(scene.word.letters))


def where(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The row and the column of the one item of that colour and shape."""
    item = pick(rng, _described(scene))
    if item is None:
        return None
    answer = f"{ROWS[item.cell[0]]} {COLUMNS[item.cell[1]]}"
    return Question("where", f"where is the {item.colour} {item.shape}?", answer)


def what_is_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The glyph of the item in a cell, or "nothing"; one question in seven draws any cell."""
    if rng.random() < 0.85:
        cell = scene.items[int(rng.integers(len(scene.items)))].cell
    else:
        cell = (int(rng.integers(GRID)), int(rng.integers(GRID)))
    if scene.word and scene.word.cell == cell:
        return None
    item = scene.at(cell)
    text = f"what is in {place(cell)}?"
    return Question("what_is_at", text, item.glyph if item else "nothing")


TYPES = tuple(
    ask.__name__
    for ask in (read, colour_of, shape_of, left_of, count, exist, word, where, what_is_at)
)
ASKERS: dict[str, Ask] = {name: globals()[name] for name in TYPES}


def ask(
    scene: Scene,
    rng: np.random.Generator,
    number: int,
    weights: Mapping[str, float] | None = None,
    askers: Mapping[str, Ask] = ASKERS,
) -> tuple[Question, ...]:
    """`number` questions about a scene, no two alike while others can still be found.

    Args:
        scene: what is asked about.
        rng: everything is drawn from it.
        number: of questions.
        weights: relative frequencies by name; without them all types are equally frequent, as far
            as the scene admits them.
        askers: the types by name, each with what asks one question of it.

    Raises:
        ValueError: weights of types that are not among `askers`, or a scene that admits too few.
    """
    if weights is not None and (unknown := set(weights) - set(askers)):
        raise BadOption(f"unknown question types {sorted(unknown)}; known: {list(askers)}")
    names = tuple(askers)
    shares = np.array([1.0 if weights is None else weights.get(name, 0.0) for name in names])
    ladder = np.cumsum(shares / shares.sum())
    ladder[-1] = 1.0
    asked: list[Question] = []
    seen: set[str] = set()
    for attempt in range(100 * number):
        name = names[int(np.searchsorted(ladder, rng.random(), side="right"))]
        question = askers[name](scene, rng)
        if question is None or (question.text in seen and attempt < 20 * number):
            continue
        seen.add(question.text)
        asked.append(question)
        if len(asked) == number:
            return tuple(asked)
    raise BadOption(f"the scene admits no {number} questions with the weights {weights}")


REWORDED = (
    (r"what is in (the \w+ row \w+ column)\?", r"what is there in \1?"),
    (r"what is in (the \w+ \w+)\?", r"what is written in \1?"),
    (r"what colour is the object (\w+)\?", r"what colour has the object \1?"),
    (r"what shape has the (\w+)\?", r"what shape is the object \1?"),
    (r"what is (left of|right of|above|below) (.+)\?", r"what is there \1 \2?"),
    (r"how many (.+) are there\?", r"there are how many \1?"),
    (r"is there (a .+)\?", r"there is \1?"),
    (r"what word is written\?", r"what is the written word?"),
    (r"where is (.+)\?", r"\1 is where?"),
)


def paraphrased(text: str) -> str | None:
    """The same question in other words of the same vocabulary; None where there is no rule."""
    for pattern, other in REWORDED:
        if match := re.fullmatch(pattern, text):
            return match.expand(other)
    return None


def _described(scene: Scene) -> list[Item]:
    """Items whose colour and shape together name them alone."""
    kinds = Counter((item.colour, item.shape) for item in scene.items)
    return [item for item in scene.items if kinds[item.colour, item.shape] == 1]


def lettered(scene: Scene) -> list[Item]:
    """Items whose glyph no other item carries."""
    glyphs = Counter(item.glyph for item in scene.items)
    return [item for item in scene.items if glyphs[item.glyph] == 1]


def place(cell: tuple[int, int]) -> str:
    """How a question names a cell: `the top row second column`."""
    return f"the {ROWS[cell[0]]} row {COLUMNS[cell[1]]} column"


def pick(rng: np.random.Generator, items: list[Item]) -> Item | None:
    """One of the items; None where there is none."""
    return items[int(rng.integers(len(items)))] if items else None
