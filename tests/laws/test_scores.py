"""What strategies are told about attention is the model's attention, written out by hand."""

import pytest
import torch

import tokenreduce as tr
from tests.laws.scores import check_scores
from tokenreduce.evidence import EVIDENCE
from tokenreduce.testing.models import FAMILIES


@pytest.mark.parametrize(
    ("family", "attention"),
    [(name, kind) for name, family in FAMILIES.items() for kind in family.attentions],
)
def test_evidence_is_the_attention_of_the_weights(family, attention):
    check_scores(family, attention)
    check_scores(family, attention, training=True)


def test_evidence_that_was_not_asked_for_is_not_there():
    class Sly(tr.Stride):
        def plan(self, tokens, budget):
            assert bool(torch.isfinite(tokens["attention"]).all())
            tokens["attention_before"]

    from tokenreduce.testing import laws

    with pytest.raises(KeyError, match="needs"):
        laws.trial(Sly(), "llama", "single").forward()


def test_every_kind_of_attention_has_its_reference():
    from tests.laws.scores import EXPECTED

    # rows of text and the tower's are held against the model's own maps in engine/test_evidence
    assert set(EXPECTED) == {name for name in EVIDENCE if name.startswith("attention")}
