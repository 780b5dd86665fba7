"""Changes of the input that keep its meaning: how much a model's answers move without a reason.

What a reduction does to the answers is measured against this scale ("Compared to What?", arXiv
2605.01048): a loss that a shift by one pixel causes as well is none of the reduction's own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL import Image, ImageChops

from tokenreduce.data.items import Item
from tokenreduce.registry import Registry

PIXELS = 1
QUALITY = 95

Perturbation = Callable[[Item], Item | None]

perturbations: Registry[Perturbation] = Registry("perturbation", "tokenreduce.evaluation")
"""Every known change: name -> function of a question, None where it has no such change.

All questions are changed before the first is asked, so a function that changes the picture gives
what makes it (`Item.pixels`) and opens nothing.
"""


@perturbations.register("shift")
def shift(item: Item) -> Item:
    """The picture moved right and down by one pixel; the first row and column stay as well."""
    return replace(item, pixels=partial(_shifted, item))


@perturbations.register("jpeg")
def jpeg(item: Item) -> Item:
    """The picture saved as JPEG of quality 95 and read again."""
    return replace(item, pixels=partial(_saved, item))


@perturbations.register("paraphrase")
def paraphrase(item: Item) -> Item | None:
    """The same question in other words, where the data has them."""
    return None if item.paraphrase is None else replace(item, question=item.paraphrase)


def _shifted(item: Item) -> Image.Image:
    image = item.picture()
    moved = ImageChops.offset(image, PIXELS, PIXELS)
    moved.paste(image.crop((0, 0, image.width, PIXELS)), (0, 0))
    moved.paste(image.crop((0, 0, PIXELS, image.height)), (0, 0))
    return moved


def _saved(item: Item) -> Image.Image:
    packed = io.BytesIO()
    item.picture().save(packed, "JPEG", quality=QUALITY)
    with Image.open(packed, formats=("JPEG",)) as image:
        return image.convert("RGB")
