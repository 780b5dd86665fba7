"""Pictures to draw the prompts of tiny models on, for the tests of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import texture
from tokenreduce.testing.batches import Batch, batch
from tokenreduce.testing.models import FAMILIES
from tokenreduce.viz import Look, scenes


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture whose parts differ."""
    return Image.fromarray(texture(height, width, seed))


def prompt(family: str, pictures: int = 1) -> Batch:
    """One prompt with so many of a recipe's pictures."""
    return batch(FAMILIES[family], (pictures,))


def reduced(given: Batch, strategy: Any, scheduler: Any) -> tr.Reduction:
    """The reduction after one prefill of a tiny model."""
    model = given.family.model()
    with torch.no_grad(), tr.reduce(model, strategy, scheduler) as reduction:
        given.run(model)
    return reduction


def look_at(family: str, strategy: Any, scheduler: Any, pictures: Sequence[Any]) -> Look:
    """What is to be drawn of such a prefill; both models say nothing."""
    reduction = reduced(prompt(family, len(pictures)), strategy, scheduler)
    return Look(
        question=f"{strategy} in {family}?",
        answers={"full": "nothing", "reduced": "nothing"},
        scenes=scenes(reduction, pictures),
        report=reduction.report.to_dict(),
    )
