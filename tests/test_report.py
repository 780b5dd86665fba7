"""What a report says of the choice of tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tokenreduce as tr
from tokenreduce.cost import cost, shape_of
from tokenreduce.report import EncoderReport
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES

LLAVA = FAMILIES["llava"]


def reported(strategy: str) -> tuple[tr.Reduction, int]:
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    schedule = tr.Explicit((1, 3), (0.6, 0.2))
    with tr.reduce(model, strategy, schedule) as reduction:
        given.run(model, use_cache=False)
        report = reduction.report
    text = given.real.shape[1] - given.counts[0]
    price = cost(shape_of(model.config), schedule, given.counts[0], text)
    return report, 2 * price.selection_macs


def test_a_score_by_attention_is_counted() -> None:
    report, expected = reported("pyramid_drop")
    assert report.selection_flops == expected > 0
    assert f"selection FLOPs   up to {expected:.4g} more" in str(report)
    assert report.to_dict()["selection_flops"] == expected


@pytest.mark.parametrize(("strategy", "flops"), [("random", 0), ("stride", 0), ("dart", None)])
def test_nothing_is_claimed_of_other_evidence(strategy: str, flops: int | None) -> None:
    report, _ = reported(strategy)
    assert report.selection_flops == flops
    assert "selection FLOPs" not in str(report)


def test_a_report_is_short_where_a_console_shows_it() -> None:
    report, _ = reported("stride")
    visual, kept = report.visual_tokens[0], [stop["kept"][0] for stop in report.stops]
    line = repr(report)
    assert f"visual tokens {visual} -> {kept[0]} -> {kept[1]}, prefill FLOPs " in line
    assert "\n" not in line
    assert len(line) < 160
    many = replace(report, visual_tokens=[visual] * 64)
    assert "64 samples" in repr(many)


def test_the_words_of_a_tower_report() -> None:
    one = EncoderReport(1, 9, [9, 5], 50, 100, True)
    assert "9 in the picture" in str(one)
    assert "each of 2 pictures" in str(replace(one, pictures=2))
    assert repr(one) == "<EncoderReport: 9 -> 5 tokens, FLOPs 50.0%>"


@pytest.mark.parametrize("layer", [0, 2])
def test_text_tokens_are_counted_by_sample(layer: int) -> None:
    """Wherever the first stop is: what a layer has beside the visual tokens that are left."""
    model, given = LLAVA.model(), batch(LLAVA, (1, 0, 2))
    with tr.reduce(model, "random", tr.Single(layer, 0.2)) as reduction:
        given.run(model, use_cache=False)
        report = reduction.report
    words = (given.real & ~given.visual).sum(dim=1).tolist()
    assert len(set(words)) > 1
    assert report.text_tokens == words
    assert report.to_dict()["text_tokens"] == words
    assert [n - t for n, t in zip(report.tokens_per_layer[-1], words, strict=True)] == [5, 0, 10]


def test_text_in_parts_adds_up() -> None:
    """A prompt that comes in chunks is reported as one."""
    model, given = LLAVA.model(), batch(LLAVA, (1,))
    second = batch(LLAVA, (2,))
    with tr.reduce(model, "random", tr.Single(0, 0.2)) as reduction:
        cache = tr.cache_of(given.run(model, use_cache=True))
        known = tr.with_cache(model, cache)
        seen = given.real.shape[1] + second.real.shape[1]
        mask = torch.ones(1, seen, dtype=torch.long)
        model(**{**second.inputs, "attention_mask": mask}, **known, use_cache=True)
        report = reduction.report
    words = sum(int((one.real & ~one.visual).sum()) for one in (given, second))
    assert report.text_tokens == [words]
