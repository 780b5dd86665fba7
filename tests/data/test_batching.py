"""A batch of encoded rows is the batch that the family's own processor makes."""

from __future__ import annotations

import pytest
import torch

from tests.data.families import ALL, ONE_ANSWER, noise, processor, talk
from tokenreduce.data.encoding import Collator, Encoder
from tokenreduce.data.rows import Conversation, Unusable

pytestmark = pytest.mark.filterwarnings(  # of processors that give numpy a tensor
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
SIDES = ("right", "left")
ONE = (1, "What is this ?", "word50 word51")
TWO = (2, "Which one is this and how many ?", "word50")
NONE = (0, "Which ?", "word52")
BATCHES = {
    "one image each": [(ONE, 0), (ONE, 1), (ONE, 2)],
    "several": [(ONE, 0), (TWO, 1)],
    "several, the other way": [(TWO, 0), (ONE, 2)],
    "without between": [(ONE, 1), (NONE, 0), (TWO, 0)],
    "without first": [(NONE, 0), (ONE, 0)],
    "without": [(NONE, 0), (NONE, 0)],
    "one row": [(TWO, 1)],
}


def rows_of(family, batch):
    rows = [talk(turn, first=first) for turn, first in BATCHES[batch]]
    if family == "perception_lm":  # of one shape: its processor has no batches of others
        rows = [Conversation(r.name, tuple(noise(0) for _ in r.images), r.messages) for r in rows]
    return rows


def own_batch(made, rows, family, side):
    """What the processor makes of the same texts and pictures, in one call."""
    made.tokenizer.padding_side = side
    images = [row.pictures() for row in rows]
    options = {"images": images} if any(images) else {}
    if family in ONE_ANSWER:
        options["suffix"] = [row.messages[-1]["content"][0]["text"] for row in rows]
        asked = [list(row.messages[:-1]) for row in rows]
    else:
        asked = [list(row.messages) for row in rows]
    texts = [
        made.apply_chat_template(m, tokenize=False, add_generation_prompt=family in ONE_ANSWER)
        for m in asked
    ]
    return made(text=texts, padding=True, return_tensors="pt", **options)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("family", ALL)
def test_a_batch_is_the_processors(family, batch, request):
    """Padded on one side, in turn; with `--full` on both."""
    full = request.config.getoption("--full", default=False)
    turn = ([*ALL].index(family) + [*BATCHES].index(batch)) % 2
    for side in SIDES if full else [SIDES[turn]]:
        check_batch(family, batch, side)


def check_batch(family, batch, side):
    made = processor(family)
    rows = rows_of(family, batch)
    encoder = Encoder(made)
    if family in ONE_ANSWER and not all(row.images for row in rows):
        with pytest.raises(Unusable, match=r"refused by the processor.*images"):
            [encoder(row) for row in rows]
        return
    encoded = [encoder(row) for row in rows]
    found = Collator(made, side)(encoded)
    own = own_batch(made, rows, family, side)
    assert set(found) == set(own) | {"labels"}
    for key in set(own) - {"labels"}:
        assert found[key].dtype == own[key].dtype, key
        assert torch.equal(found[key], own[key]), key
    for row, labels, mask in zip(encoded, found["labels"], found["attention_mask"], strict=True):
        assert torch.equal(labels[mask == 1], row["labels"])
        assert (labels[mask == 0] == -100).all()


@pytest.mark.parametrize("family", ALL)
def test_a_model_learns_from_a_batch(family):
    """The loss of the family's tiny model on a batch is finite, and goes down the labels alone."""
    from tokenreduce.testing.models import FAMILIES

    made = processor(family)
    rows = rows_of(family, "one image each")
    encoder = Encoder(made)
    batch = Collator(made)([encoder(row) for row in rows])
    model = FAMILIES[family].model().train()
    loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite()
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    wanted = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[wanted != -100], wanted[wanted != -100])
    assert torch.isclose(loss, expected, rtol=1e-5)


def test_pictures_that_cannot_be_in_one_batch():
    made = processor("perception_lm")
    encoder = Encoder(made)
    encoded = [encoder(talk(ONE, first=first)) for first in (0, 1)]
    with pytest.raises(ValueError, match=r"PerceptionLMProcessor has no batches.*batches of one"):
        Collator(made)(encoded)
    assert Collator(made)(encoded[:1])["pixel_values"].shape[0] == 1


def test_arguments():
    made = processor("llava")
    with pytest.raises(ValueError, match=r"no side 'middle'.*right, left"):
        Collator(made, "middle")
    made.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        Collator(made)
