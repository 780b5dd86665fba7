"""Paired comparisons of two conditions on the same questions: tests, divergences, power.

Both conditions answer the same n questions; several questions may be about one picture, and
pictures, not questions, are what was sampled. Statistics are scipy's. Shapes: n questions,
c candidates of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest, entropy, norm

from tokenreduce.evaluation.intervals import Right, clustered, resampled

Values = np.ndarray[Any, Any]
NOTHING = 1e-10
"""Probability that stands for zero in a logarithm."""


def mcnemar(one: Right, other: Right) -> float:
    """The two-sided exact p-value of "as many answers were gained as lost" (McNemar 1947).

    A binomial test of the answers that differ; 1 where none does. It takes questions as
    independent, which several about one picture are not: the interval of `clustered` is beside it.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def jensen_shannon(p: Values, q: Values) -> Values:
    """(n, c), (n, c) -> (n,) divergence of two distributions of every question, in bits (0 to 1).

    Symmetric and bounded; scipy's distance squared.
    """
    found = np.asarray(jensenshannon(_whole(p), _whole(q), base=2, axis=1), dtype=float)
    return np.asarray(
        np.nan_to_num(found) ** 2
    )  # rounding may leave a square root of less than nothing


def kullback_leibler(p: Values, q: Values) -> Values:
    """(n, c), (n, c) -> (n,) what is lost by taking q for p, in bits; q is nowhere below 1e-10."""
    safe = np.maximum(_whole(q), NOTHING)
    found: Values = entropy(_whole(p), safe / safe.sum(axis=1, keepdims=True), base=2, axis=1)
    return np.asarray(np.maximum(found, 0.0))


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them being looked at (Holm 1979), in their order."""
    order = np.argsort(p)
    steps = np.array(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(x) for x in adjusted]


def relative(one: Values, full: Values, cluster: Values) -> dict[str, Any]:
    """Accuracy of `one` as a share of that of the unreduced model, with an interval."""
    ours, theirs = resampled(one, cluster), resampled(full, cluster)  # the same pictures in both
    low, high = np.percentile(ours / np.maximum(theirs, NOTHING), [2.5, 97.5])
    whole = float(full.mean())
    share = float(one.mean()) / whole if whole else float("nan")
    return {"relative": round(share, 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def non_inferiority(
    one: Values, other: Values, cluster: Values, margin: float, alpha: float = 0.05
) -> dict[str, Any]:
    """Whether `one` is shown to lose less than `margin` of its answers against `other`.

    One-sided. Not finding a difference is no evidence that there is none; this test has the loss
    of `margin` as the hypothesis to be refuted. The standard error is that of Agresti and Min
    (2005, Statistics in Medicine 24: half an answer added to each of the four cells), widened
    where answers about one picture go together.

    Args:
        one: (n,) right (1) or wrong (0), or the mean of several seeds.
        other: (n,) of the condition it is compared with.
        cluster: (n,) which picture each question is about.
        margin: a share of all answers, above 0.
        alpha: one-sided level.

    Raises:
        ValueError: a margin outside 0 to 1.
    """
    check_margin(margin)
    change = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    n = len(change) + 2
    middle = float(change.sum()) / n
    spread = sqrt(max((change**2).sum() + 1 - n * middle**2, 0.0)) / n
    spread *= sqrt(design_effect(change, cluster))
    lower = middle - float(norm.ppf(1 - alpha)) * spread
    return {
        "margin": margin,
        "lower": round(lower, 4),
        "p": float(norm.sf((middle + margin) / spread)),
        "power": round(float(norm.sf(norm.ppf(1 - alpha) - margin / spread)), 3),
    }


def design_effect(values: Values, cluster: Values) -> float:
    """By how much a mean varies more because pictures, not questions, were drawn; at least 1."""
    alone = float(values.var()) / len(values)
    if alone == 0:
        return 1.0
    names, at = np.unique(cluster, return_inverse=True)
    sums = np.bincount(at, weights=values - values.mean())
    together = float((sums**2).sum()) / len(values) ** 2 * len(names) / max(len(names) - 1, 1)
    return max(1.0, together / alone)


def planned_power(n: int, margin: float, changing: float, alpha: float = 0.05) -> float:
    """The chance that n questions show non-inferiority of a condition that loses nothing.

    changing: the share of questions whose answers become right or wrong; half each.
    """
    check_margin(margin)
    return float(norm.sf(norm.ppf(1 - alpha) - margin * sqrt(n / max(changing, NOTHING))))


def needed(margin: float, changing: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """How many questions `planned_power` needs to reach `power`."""
    check_margin(margin)
    z = float(norm.ppf(1 - alpha) + norm.ppf(power))
    return max(1, ceil(round(changing * (z / margin) ** 2, 9)))


def mean(values: Values, cluster: Values) -> dict[str, Any]:
    """A mean over questions with its 95 % interval over pictures."""
    low, high = clustered(values, cluster)
    return {
        "mean": round(float(values.mean()), 5),
        "interval": [round(low, 5), round(high, 5)],
    }


def greater(values: Values, cluster: Values) -> dict[str, Any]:
    """`mean` of paired differences, and the one-sided p-value of its not being above 0.

    The p-value is the share of resampled means at or below 0 (never 0: one draw is added).
    """
    drawn = resampled(values, cluster)
    if len(np.unique(cluster)) < 2:  # one picture says nothing about others
        return {**mean(values, cluster), "p": 1.0}
    p = (1 + int((drawn <= 0).sum())) / (1 + len(drawn))
    return {**mean(values, cluster), "p": round(p, 5)}


def check_margin(margin: float) -> None:
    """Stop a margin that no difference of shares can have.

    Raises:
        ValueError: it does not lie between 0 and 1.
    """
    if isinstance(margin, bool) or not 0 < margin < 1:
        raise ValueError(
            f"margin={margin!r}: it is the share of answers that may be lost, above 0 and below 1"
        )


def _whole(p: Values) -> Values:
    """Every row as a distribution: what is left of 1 is one more outcome."""
    p = np.clip(np.asarray(p, dtype=float), 0.0, 1.0)
    rest = np.clip(1 - p.sum(axis=1, keepdims=True), 0.0, 1.0)
    full = np.concatenate([p, rest], axis=1)
    return np.asarray(full / full.sum(axis=1, keepdims=True))
