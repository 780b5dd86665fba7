"""Shares and differences of shares with 95 % intervals.

Shapes: n answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest

Right = np.ndarray[Any, np.dtype[np.bool_]]


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927, JASA 22)."""
    if not trials:
        return 0.0, 1.0
    low, high = binomtest(hits, trials).proportion_ci(method="wilson")
    return float(low), float(high)


def resampled(
    values: np.ndarray[Any, Any], cluster: np.ndarray[Any, Any], seed: int = 0, draws: int = 2000
) -> np.ndarray[Any, Any]:
    """(draws,) means of `values` (n,), with whole clusters (pictures) drawn again and again.

    The same seed and clusters draw the same pictures, whatever the values: two conditions stay
    paired. Of one picture alone questions are drawn, which says nothing about others.
    """
    names, at = np.unique(cluster, return_inverse=True)
    if len(names) == 1:
        names = at = np.arange(len(values))
    total = np.bincount(at, weights=values.astype(float))
    count = np.bincount(at).astype(float)
    chosen = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    found: np.ndarray[Any, Any] = total[chosen].sum(axis=1) / count[chosen].sum(axis=1)
    return found


def clustered(
    values: np.ndarray[Any, Any], cluster: np.ndarray[Any, Any], seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean, by drawing whole clusters (pictures).

    Args:
        values: (n,) numbers, such as differences of two answers to the same question.
        cluster: (n,) which picture each belongs to.
        seed: of the draws.
        draws: how many.
    """
    means = resampled(values, cluster, seed, draws)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def shares(
    right: np.ndarray[Any, Any], kinds: list[str], cluster: np.ndarray[Any, Any]
) -> dict[str, Any]:
    """Accuracy over all answers and of every kind, each with an interval.

    Over all, pictures are drawn (several questions share one); within a kind, Wilson's interval.
    """
    low, high = clustered(right, cluster)
    found: dict[str, Any] = {
        "accuracy": round(float(right.mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "kinds": {},
    }
    kind = np.array(kinds)
    for name in dict.fromkeys(kinds):
        own = right[kind == name]
        bounds = wilson(round(own.sum()), len(own))  # a mean over seeds is no whole number
        found["kinds"][name] = {
            "accuracy": round(float(own.mean()), 4),
            "interval": [round(x, 4) for x in bounds],
            "questions": len(own),
        }
    return found


def difference(one: Right, other: Right, cluster: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Accuracy of `one` less that of `other` on the same questions, with an interval."""
    change = one.astype(float) - other.astype(float)
    low, high = clustered(change, cluster)
    return {
        "difference": round(float(change.mean()), 4),
        "interval": [round(low, 4), round(high, 4)],
        "gained": int((change > 0).sum()),
        "lost": int((change < 0).sum()),
    }
