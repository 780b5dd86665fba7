"""`min_tokens`: prompts too short to be worth a reduction, left alone and visibly so."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import tokenreduce as tr
from tokenreduce.checkpoint import FILE
from tokenreduce.testing import laws
from tokenreduce.testing.batches import batch
from tokenreduce.testing.encoders import encoder
from tokenreduce.testing.models import FAMILIES
from tokenreduce.testing.trial import generate

LLAVA = FAMILIES["llava"]  # 25 visual tokens to a picture
MERGING = ["visionzip", "prumerge", "pooling", "tome", "sparsevlm", "pact"]


@pytest.mark.parametrize("strategy", ["random", "pyramid_drop", *MERGING])
@pytest.mark.parametrize("family", ["llama-gqa", "llava_next", "qwen2_5_vl"])
def test_law_in_mixed_batches(strategy, family):
    chosen = tr.strategies.build(strategy)
    trial = laws.trial(chosen, family, "explicit")
    if tr.adapters[FAMILIES[family].adapter]().missing_evidence(chosen.needs, trial.model):
        pytest.skip("the family cannot measure what the method needs")
    laws.too_few_tokens_are_left_alone(trial)


@pytest.mark.parametrize("strategy", ["cdpruner", "divprune"])
def test_a_larger_budget_beside_it_changes_no_choice(strategy):
    """Where separators leave a place over, later picks of the greedy order would take it."""
    chosen = tr.strategies.build(strategy)
    for keep in (1 / 9, 0.2, 0.35):
        laws.too_few_tokens_are_left_alone(laws.trial(chosen, "llava_next", tr.Single(0, keep)))


def test_the_law_sees_a_sample_that_is_reduced_after_all(monkeypatch):
    from tokenreduce.engine.engine_config import EngineConfig

    monkeypatch.setattr(EngineConfig, "spared", lambda self, counts: (False,) * len(counts))
    with pytest.raises(AssertionError, match="min_tokens"):
        laws.too_few_tokens_are_left_alone(laws.trial(tr.Stride(), "llama-gqa", "explicit"))


def test_generating_is_the_plain_model_to_the_bit():
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    plain = generate(model, given)
    with tr.reduce(model, "pyramid_drop", tr.Single(1, 0.2), min_tokens=26):
        mine = generate(model, given)
    assert torch.equal(mine.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(mine.logits, plain.logits, strict=True))


def test_the_report_says_who_was_left_alone_and_nothing_warns():
    model, given = LLAVA.model(), batch(LLAVA, (1, 0, 2), "right")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tr.reduce(model, "random", tr.Single(2, 0.2), min_tokens=26) as reduction:
            given.run(model, use_cache=False)
            report = reduction.report
        with tr.reduce(model, "random", tr.Single(2, 0.2), min_tokens=99) as reduction:
            given.run(model, use_cache=False)
    said = "25 visual tokens are fewer than min_tokens=26"
    assert report.applied == [False, False, True]
    assert report.skipped == [said, None, None]
    assert report.stops == [{"layer": 2, "keep": 0.2, "kept": [25, 0, 10]}]
    assert f"sample 0   as is     {said}" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["skipped"] == report.skipped


def test_a_count_at_the_limit_is_reduced():
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    with tr.reduce(model, "random", tr.Single(2, 0.2), min_tokens=25) as reduction:
        given.run(model, use_cache=False)
        assert (reduction.report.applied, reduction.report.skipped) == ([True], [None])


def test_keeping_all_is_not_said_to_be_skipped():
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    with tr.reduce(model, "random", tr.Single(2, 1.0), min_tokens=99) as reduction:
        given.run(model, use_cache=False)
        assert reduction.report.skipped == [None]


def test_every_part_of_a_conversation_is_judged_by_itself():
    """A second picture in the same cache has its own number of tokens."""
    model, first, second = LLAVA.model(), batch(LLAVA, (2,)), batch(LLAVA, (1,))
    with (
        torch.no_grad(),
        tr.reduce(model, "random", tr.Single(2, 0.2), min_tokens=26) as reduction,
    ):
        cache = tr.cache_of(first.run(model, use_cache=True))
        inputs = dict(second.inputs)
        inputs["attention_mask"] = torch.ones(
            1, first.real.shape[1] + second.real.shape[1], dtype=torch.long
        )
        model(**inputs, **tr.with_cache(model, cache), use_cache=True)
        report = reduction.report
    assert report.visual_tokens == [75]
    assert report.applied == [True]
    assert report.skipped == ["25 of 75 visual tokens came in parts of fewer than min_tokens=26"]


def test_it_travels_with_a_checkpoint(tmp_path):
    model = LLAVA.model()
    for number, version in ((26, 2), (0, 1)):
        with tr.reduce(model, "random", tr.Single(2, 1.0), min_tokens=number) as reduction:
            reduction.save(tmp_path)
        assert json.loads((tmp_path / FILE).read_text())["format"] == version
        with tr.load(model, tmp_path) as loaded:
            assert loaded.min_tokens == number


@pytest.mark.parametrize("wrong", [-1, 2.5, "16", True])
def test_other_values_are_refused(wrong):
    with pytest.raises(ValueError, match=r"min_tokens must be a whole number of at least 0"):
        tr.reduce(LLAVA.model(), "random", min_tokens=wrong)


def test_merging_in_the_tower_is_refused():
    with pytest.raises(ValueError, match="min_tokens=8 is decided at decoder layers"):
        tr.reduce(LLAVA.model(), tr.ToMe(tower="merged"), min_tokens=8)


def test_a_plain_encoder_is_refused():
    model = encoder("clip")
    with pytest.raises(ValueError, match="min_tokens are of a language model"):
        tr.reduce(model, "tome", min_tokens=8)
