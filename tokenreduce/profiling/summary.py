"""What a profile came to, as plain data: the numbers of `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tokenreduce.evaluation.intervals import clustered
from tokenreduce.profiling.cells import Cells, Measurement
from tokenreduce.profiling.meter import ScheduleEvaluator
from tokenreduce.profiling.prices import CostTable, Stops
from tokenreduce.profiling.sensitivity import Sensitivity


def summary(
    meter: ScheduleEvaluator,
    cells: Cells,
    losses: Sensitivity,
    ranked: Sequence[Measurement],
    theirs: Stops,
    budget: float,
    by: str,
) -> dict[str, Any]:
    """Everything that was measured and found, as plain data.

    Args:
        meter: that measured.
        cells: all that was measured: the full model, every stop of `losses`, `theirs` and `ranked`.
        losses: what one stop costs.
        ranked: the schedules that were measured, the best first.
        theirs: the schedule that was given.
        budget: share of FLOPs.
        by: the measure.
    """
    prices = meter.prices
    whole = cells[()]

    def row(cell: Measurement) -> dict[str, Any]:
        known = all(layer in losses.layers and k >= losses.keeps[0] for layer, k in cell.stops)
        return {
            **_plain(cell, meter),
            "flops_share": round(prices.share(cell.stops), 6),
            "predicted": round(losses.predicted(cell.stops), 6) if known else None,
            "loss": round(cell.loss(by) - whole.loss(by), 6),
        }

    schedules = [row(cell) for cell in ranked]
    return {
        "measure": by,
        "budget": budget,
        "convention": prices.convention,
        "depth": prices.depth,
        "prompts": len(meter.prompts),
        "pictures": len(set(meter.pictures.tolist())),
        "tokens": {
            "visual": _mean(prices, 0),
            "text": _mean(prices, 1),
        },
        "layers": list(losses.layers),
        "keeps": sorted(losses.keeps, reverse=True),
        "full": _plain(whole, meter),
        "sensitivity": [row(cells[((a, k),)]) for a in losses.layers for k in losses.keeps],
        "given": row(cells[theirs]),
        "found": schedules[0],
        "schedules": schedules,
        "additivity": additivity([r for r in schedules if len(r["stops"]) > 1]),
        "cells": str(cells.path),
        "seconds_measuring": round(sum(cell.seconds for cell in cells), 1),
    }


def additivity(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How well losses that add up foretell those of several stops; None where too few are known.

    `error` is the mean difference (measured less predicted), `absolute` its mean size, `rank` the
    correlation of ranks (Spearman).
    """
    pairs = [(r["predicted"], r["loss"]) for r in rows if r["predicted"] is not None]
    if len(pairs) < 3:
        return None
    predicted, measured = np.array(pairs).T
    flat = np.ptp(predicted) == 0 or np.ptp(measured) == 0
    return {
        "schedules": len(pairs),
        "error": round(float((measured - predicted).mean()), 6),
        "absolute": round(float(np.abs(measured - predicted).mean()), 6),
        "rank": None if flat else round(float(spearmanr(predicted, measured).statistic), 4),
    }


def _plain(cell: Measurement, meter: ScheduleEvaluator) -> dict[str, Any]:
    """A cell without what each prompt gave; intervals, drawn over pictures, in its place."""
    row = {key: value for key, value in asdict(cell).items() if key != "each"}
    for key, values in cell.each.items():
        bounds = clustered(np.array(values), meter.pictures)
        row[f"{key}_interval"] = [float(f"{x:.4g}") for x in bounds]
    return row


def _mean(prices: CostTable, which: int) -> float:
    total = sum(key[which] * number for key, number in prices.counts.items())
    return round(total / sum(prices.counts.values()), 2)
