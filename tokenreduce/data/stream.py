"""Numbered samples without end: sample i of a split follows from (seed, split, i) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenreduce.data.questions import Question, ask
from tokenreduce.data.shapes import Image, Owners, Scene, compose, render
from tokenreduce.errors import BadOption

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Sample:
    """A scene, its picture (96, 96, 3), the owner of every patch (12, 12), and its questions."""

    scene: Scene
    image: Image
    owners: Owners
    questions: tuple[Question, ...]


def sample(
    seed: int, split: str, index: int, *, questions: int = 1, difficulty: float = 1.0
) -> Sample:
    """Sample `index` of a split: the same for the same arguments, whatever was drawn before."""
    rng = generator(seed, split, index)
    scene = compose(rng, difficulty)
    image, owners = render(scene, rng)
    return Sample(scene, image, owners, ask(scene, rng, questions) if questions else ())


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """What sample `index` of a split is drawn from; train and held-out never share a stream.

    Raises:
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise BadOption(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return np.random.default_rng((seed, SPLITS.index(split), index))
