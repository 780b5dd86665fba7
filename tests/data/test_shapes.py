"""The rendered task: reproducible, held-out apart, answers true."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from tokenreduce.data import SPLITS, TYPES, Item, Scene, Word, sample
from tokenreduce.data.glyphs import GLYPHS, HEIGHTS, glyph
from tokenreduce.data.questions import ask
from tokenreduce.data.shapes import render

SCENE = Scene(
    items=(
        Item("circle", "red", "A", (0, 0)),
        Item("square", "blue", "7", (0, 1)),
        Item("square", "red", "K", (2, 1)),
        Item("triangle", "cyan", "7", (3, 3)),
        Item("triangle", "cyan", "0", (1, 1)),
    ),
    word=Word(("T", "A", "X"), (3, 0)),
)
TRUTH = {
    "what is in the red circle?": "A",
    "what colour is the object A?": "red",
    "what shape has the K?": "square",
    "what is right of the red circle?": "7",
    "what is left of the blue square?": "A",
    "what is below the blue square?": "0",
    "what is above the red square?": "0",
    "how many triangles are there?": "2",
    "how many red objects are there?": "2",
    "how many green objects are there?": "0",
    "is there a cyan triangle?": "yes",
    "is there a blue circle?": "no",
    "what word is written?": "T A X",
    "where is the red square?": "lower second",
    "what is in the bottom row fourth column?": "7",
    "what is in the top row third column?": "nothing",
}
# What may not be asked: it has two answers, or belongs to the word.
AMBIGUOUS = (
    "what is in the cyan triangle?",
    "where is the cyan triangle?",
    "what colour is the object 7?",
    "what shape has the 7?",
    "what is in the bottom row first column?",
)


def test_a_sample_follows_from_seed_split_and_number() -> None:
    later_first = [sample(3, "train", i, questions=4) for i in (5, 0)]
    again = [sample(3, "train", i, questions=4) for i in (0, 5)]
    for first, second in zip(later_first, reversed(again), strict=True):
        assert first.scene == second.scene
        assert first.questions == second.questions
        assert np.array_equal(first.image, second.image)


def test_splits_seeds_and_numbers_share_nothing() -> None:
    pictures = {
        sample(seed, split, i).image.tobytes()
        for seed in (0, 1)
        for split in SPLITS
        for i in range(40)
    }
    assert len(pictures) == 2 * len(SPLITS) * 40


def test_an_unknown_split_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'test'; known: train, heldout"):
        sample(0, "test", 0)


def test_rendering_is_stable() -> None:
    """The pixels that the shipped checkpoint was trained on; a change here orphans it."""
    image, owners = render(SCENE, np.random.default_rng(0))
    assert image.shape == (96, 96, 3)
    assert owners.shape == (12, 12)
    assert set(owners.flat) == {-3, -2, -1, 0, 1, 2, 3, 4, 5}
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "c22fc7a4c5b815fa"
    sheet = b"".join(glyph(character, 9).tobytes() for character in GLYPHS)
    assert hashlib.sha256(sheet).hexdigest()[:16] == "1809aa409609596a"


def test_glyphs_are_all_different() -> None:
    for height in HEIGHTS:
        assert len({glyph(character, height).tobytes() for character in GLYPHS}) == len(GLYPHS)


def test_answers_are_true_and_unambiguous() -> None:
    asked = {}
    for seed in range(400):
        for question in ask(SCENE, np.random.default_rng(seed), 12):
            assert asked.setdefault(question.text, question.answer) == question.answer
    for text, answer in TRUTH.items():
        assert asked[text] == answer
    assert not set(AMBIGUOUS) & set(asked)


def test_every_type_occurs_and_no_question_twice() -> None:
    samples = [sample(0, "heldout", i, questions=10) for i in range(60)]
    types = Counter(question.type for item in samples for question in item.questions)
    assert set(types) == set(TYPES)
    assert min(types.values()) >= 20
    for item in samples:
        assert len({question.text for question in item.questions}) == 10


def test_places_agree_with_the_picture() -> None:
    """`where` and `what_is_at` are told from the cell in which the renderer drew the thing."""
    for number in range(20):
        item = sample(1, "train", number)
        for index, thing in enumerate(item.scene.items, start=1):
            rows, columns = np.nonzero(item.owners == index)
            assert {row // 3 for row in rows} == {thing.cell[0]}
            assert {column // 3 for column in columns} == {thing.cell[1]}


def test_existence_is_not_told_by_a_majority() -> None:
    rng = np.random.default_rng(0)
    answers: Counter[str] = Counter()
    for number in range(150):
        scene = sample(2, "train", number).scene
        answers.update(q.answer for q in ask(scene, rng, 4, {"exist": 1.0}))
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_weights_name_known_types() -> None:
    with pytest.raises(ValueError, match="smell"):
        ask(SCENE, np.random.default_rng(0), 1, {"smell": 1.0})


def test_difficulty_sets_the_number_of_items() -> None:
    easy = {len(sample(0, "train", i, difficulty=0.0).scene.items) for i in range(60)}
    full = {len(sample(0, "train", i, difficulty=1.0).scene.items) for i in range(200)}
    assert easy == {2, 3, 4}
    assert full == {5, 6, 7, 8, 9, 10}
