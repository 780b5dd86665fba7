"""What a report says of the choice of tokens."""

from __future__ import annotations

import pytest

import tokenreduce as tr
from tokenreduce.cost import cost, shape_of
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
    assert f"choosing tokens   {expected:.4g} more, at most" in str(report)
    assert report.to_dict()["selection_flops"] == expected


@pytest.mark.parametrize(("strategy", "flops"), [("random", 0), ("stride", 0), ("dart", None)])
def test_nothing_is_claimed_of_other_evidence(strategy: str, flops: int | None) -> None:
    report, _ = reported(strategy)
    assert report.selection_flops == flops
    assert "choosing" not in str(report)
