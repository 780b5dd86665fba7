"""The lessons: true, asked by name alone, and read as any other data."""

from __future__ import annotations

import numpy as np
import pytest
from tokenreduce_tiny.lessons import ASKED, LESSONS, Lessons, Level, draw

from tokenreduce.config import build_reader, compose
from tokenreduce.data import TYPES, Item, Scene, Word, sample
from tokenreduce.data.questions import ask

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


def test_lessons_are_true_and_asked_only_by_name() -> None:
    truth = {
        "where is the object K?": "lower second",
        "what colour is in the top row first column?": "red",
        "what shape is in the bottom row fourth column?": "triangle",
    }
    asked = {}
    for seed in range(40):
        for question in ask(
            SCENE, np.random.default_rng(seed), 6, dict.fromkeys(LESSONS, 1.0), ASKED
        ):
            assert asked.setdefault(question.text, question.answer) == question.answer
    assert "where is the object 7?" not in asked  # two of them
    for text, answer in truth.items():
        assert asked[text] == answer
    assert not set(LESSONS) & set(TYPES)


def test_a_scene_can_keep_to_few_glyphs() -> None:
    few = {
        thing.glyph
        for number in range(30)
        for thing in draw(0, "train", number, Level(glyphs=5)).scene.items
    }
    assert few == {"0", "4", "8", "E", "L"}


@pytest.mark.parametrize("number", [0, 7])
def test_without_weights_it_is_the_rendered_task(number: int) -> None:
    """So that what the model was trained on and what it is measured on are one."""
    ours = draw(3, "train", number, Level(questions=6, difficulty=0.4))
    theirs = sample(3, "train", number, questions=6, difficulty=0.4)
    assert ours.scene == theirs.scene
    assert ours.questions == theirs.questions
    assert np.array_equal(ours.image, theirs.image)


def test_what_the_weights_name_is_asked() -> None:
    """These questions were drawn when the recipe was part of tokenreduce."""
    asked = draw(0, "train", 20_000_000, Level(6, 0.5, 13, {"read": 1.5, "colour_at": 0.5}))
    assert [(one.text, one.answer) for one in asked.questions] == [
        ("what colour is in the lower row fourth column?", "cyan"),
        ("what is in the cyan circle?", "6"),
        ("what is in the green diamond?", "4"),
        ("what colour is in the upper row second column?", "green"),
        ("what is in the blue square?", "P"),
        ("what colour is in the top row first column?", "blue"),
    ]


def test_a_level_without_the_types_is_refused() -> None:
    with pytest.raises(ValueError, match="smell"):
        draw(0, "train", 0, Level(1, weights={"smell": 1.0}))


def test_it_is_a_kind_of_data() -> None:
    """Chosen on the command line; read by training, evaluation and profiles."""
    config = compose(["data=lessons", "data.size=30", "data.questions=12", "data.measured=0"])
    reader = build_reader(config)
    assert reader == Lessons(size=30, questions=12, measured=0)
    data = reader.conversations(seed=0)
    assert (len(data.train), data.measured) == (30, None)
    items = reader.items(60, seed=0)
    assert len(items) == 60
    assert {item.kind for item in items} == set(ASKED)
    prompts = list(reader.prompts(5, seed=0))
    assert sorted(one.name for one in prompts) == sorted(one.name for one in data.train)
    with pytest.raises(ValueError, match=r"give task\.limit"):
        reader.items(None, seed=0)


def test_training_and_tests_share_no_scene() -> None:
    reader = Lessons(size=5, measured=5)
    data = reader.conversations(seed=0)
    assert data.measured is not None
    pictures = {one.images[0].tobytes() for rows in (data.train, data.measured) for one in rows}
    pictures |= {item.picture().tobytes() for item in reader.items(40, seed=0)}
    assert len(pictures) == 15
