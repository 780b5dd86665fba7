"""Right answers, first tokens, and changes that keep the meaning."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from tokenreduce.data.items import Item, heldout
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.evaluation.perturbation import perturbations
from tokenreduce.evaluation.scoring import first_tokens, is_right


def item(answer="a cat", *accepted):
    return Item(0, np.zeros((4, 4, 3), np.uint8), "k", "q?", answer, accepted=accepted)


@pytest.mark.parametrize(
    ("match", "said", "right"),
    [
        ("exact", "a cat", True),
        ("exact", "A cat", False),
        ("normalised", "The Cat.", True),
        ("normalised", "cats", False),
        ("relaxed", "the cat", True),
    ],
)
def test_rules_for_right_answers(match, said, right):
    assert is_right(item(), said, match) is right


def test_numbers_may_be_off_by_five_per_cent():
    assert is_right(item("1,000"), "1049", "relaxed")
    assert not is_right(item("1,000"), "1051", "relaxed")
    assert is_right(item("40%"), "41", "relaxed")


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("", "A", False),
        ("the", "A", False),
        ("A.", "a", True),
        ("(a)", "A", True),
        ("1.5", "15", False),
        ("-5", "5", False),
        ("5.", "5", True),
        ("well-known", "wellknown", True),
        ("yes, sir", "Yes sir!", True),
    ],
)
def test_normalised_answers_stay_apart(said, right, same):
    assert is_right(item(right), said, "normalised") is same


def test_every_right_answer_counts():
    assert is_right(item("a", "b"), "b")


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="did you mean 'normalised'"):
        is_right(item(), "x", "normalized")


class Spaced:
    """A tokenizer for which a leading space is part of the token, or a token of its own."""

    words = (" ", "yes", " yes", "Yes", "no", " no", "No", "top", " top", "Top")

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        head = text.split(" left")[0].split(" right")[0]
        return {"input_ids": [self.words.index(head)] if head in self.words else [0, 1]}

    def decode(self, ids):
        return self.words[ids[0]]


def test_first_tokens_of_all_ways_to_write_an_answer():
    found = first_tokens(Spaced(), ["yes", "no"])
    assert found == {"yes": [1, 2, 3], "no": [4, 5, 6]}


def test_answers_that_begin_alike_are_one():
    found = first_tokens(Spaced(), ["top left", "no", "top right"])
    assert found == {"no": [4, 5, 6], "top left | top right": [7, 8, 9]}


def test_first_tokens_of_a_real_tokenizer():
    found = first_tokens(AutoTokenizer.from_pretrained(checkpoint_dir()), ["yes", "no", "red"])
    assert list(found) == ["yes", "no", "red"]
    assert len({i for ids in found.values() for i in ids}) == sum(map(len, found.values())) >= 3


def test_shift_moves_by_one_pixel():
    one = heldout(0, 1, 1)[0]
    before, after = np.asarray(one.picture()), np.asarray(perturbations["shift"](one).picture())
    assert (after[1:, 1:] == before[:-1, :-1]).all()
    assert (after[0] == before[0]).all()
    assert (after[:, 0] == before[:, 0]).all()


def test_jpeg_changes_little_and_something():
    one = heldout(0, 1, 1)[0]
    before, after = (np.asarray(x.picture(), int) for x in (one, perturbations["jpeg"](one)))
    assert 0 < np.abs(before - after).mean() < 8


def test_paraphrases_are_the_datas():
    assert perturbations["paraphrase"](item()) is None
    one = heldout(0, 1, 1)[0]
    assert perturbations["paraphrase"](one).question == one.paraphrase
    assert isinstance(one.picture(), Image.Image)
