"""What a report says of the choice of tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
