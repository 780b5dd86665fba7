"""The tiny models are worth testing on: dropping a token is seen, and nothing is degenerate."""

import pytest
import torch

import tokenreduce as tr
from tokenreduce.testing import laws
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, LAYERS
from tokenreduce.testing.oracle import decoder_of


@pytest.fixture(params=FAMILIES, ids=str)
def family(request):
    return FAMILIES[request.param]


def test_logits_spread_and_dropping_shows(family):
    trial = laws.trial(tr.Random(), family, "explicit")
    done = trial.forward("keep", "right")
    plain = trial.plain("right")
    assert len(decoder_of(trial.model).layers) == LAYERS
    assert 0.7 < plain[done.batch.real].std() < 1.4
    rows = [i for i, n in enumerate(done.batch.counts) if n]
    # a long row may see little of its pictures at its end: still 25 000 times the laws' tolerance
    assert (done.logits - plain)[rows, -1].abs().amax(dim=-1).min() > 0.25
    if "compact" in trial.rules:
        other = trial.forward("compact", "right").logits
        assert (other - done.logits)[rows, -1].abs().amax(dim=-1).min() > 1e-2


def test_attention_is_not_flat(family):
    model = family.model("eager")
    given = batch(family, (2,))
    with torch.no_grad():
        maps = given.run(model, use_cache=False, output_attentions=True).attentions
    n = given.real.shape[1]
    peaks = torch.stack([layer[0, :, -1].amax(-1).mean() for layer in maps])
    assert peaks.min() > 2 / n


def test_batches_are_ragged_padded_and_hold_what_they_say(family):
    for side in ("left", "right"):
        given = batch(family, (1, 0, 2), side)
        assert given.counts[1] == 0
        assert given.counts[0] > 0
        assert given.counts[2] > given.counts[0]
        assert len(set(given.real.sum(1).tolist())) == 3
        assert bool(given.real[:, -1].all()) == (side == "left")
        assert not bool((given.visual & ~given.real).any())
    left, right = (batch(family, (1, 0, 2), side) for side in ("left", "right"))
    for i in range(3):
        for name, x in left.row(i).inputs.items():
            assert torch.equal(x, right.row(i).inputs[name]), name


def test_the_same_weights_at_every_call(family):
    one, two = (family.model(kind).state_dict() for kind in (None, "eager"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_window_bites():
    with_window, without = (laws.trial(tr.Stride(), name) for name in ("mistral-window", "mistral"))
    assert (with_window.plain() - without.plain()).abs().max() > 0.5
