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
import torch
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from scipy.stats import t as student
from torch import Tensor

from tokenreduce.errors import BadOption
from tokenreduce.evaluation import divergence
from tokenreduce.evaluation.intervals import Right, clustered, resampled

Values = np.ndarray[Any, Any]
EPSILON = 1e-10
"""Probability that replaces zero in a logarithm, and the like."""
PRIOR_CLUSTERS = 1
"""Pseudo-count of pictures that change as a whole; shrinks the intra-class correlation to 1.

The test of non-inferiority then errs in at most about `alpha` of all samples whether answers about
a picture change together or not (tests/evaluation/test_statistics.py), without losing much power.
"""


def mcnemar(one: Right, other: Right) -> float:
    """The two-sided exact p-value of "as many answers were gained as lost" (McNemar 1947).

    A binomial test of the answers that differ; 1 where none does. It holds for independent
    questions alone: where several are about one picture it errs far too often, see `sign_flip`.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip(change: Values, cluster: Values, runs: int = 1) -> float:
    """The two-sided exact p-value of a mean of paired differences being 0, over whole pictures.

    Under the hypothesis the sum of the differences of a picture has either sign with the same
    chance (Fisher 1935, The Design of Experiments, section 21). With one question about each
    picture, and answers that are right or wrong, this is McNemar's exact test.

    Args:
        change: (n,) differences, multiples of `1 / runs`.
        cluster: (n,) which picture each question is about.
        runs: seeds that the answers are a mean of.
    """
    _, at = np.unique(cluster, return_inverse=True)
    sums = np.rint(runs * np.bincount(at, weights=np.asarray(change, dtype=float))).astype(int)
    sizes = np.abs(sums[sums != 0])
    chance = np.ones(1)  # of every sum of the pictures that changed for the better
    for size in sizes:
        grown = np.zeros(len(chance) + size)
        grown[: len(chance)] += chance / 2
        grown[size:] += chance / 2
        chance = grown
    apart = np.abs(2 * np.arange(len(chance)) - sizes.sum())
    return min(float(chance[apart >= abs(sums.sum())].sum()), 1.0)


def jensen_shannon(p: Values, q: Values) -> Values:
    """(n, c), (n, c) -> (n,) divergence of two distributions of every question, in bits (0 to 1).

    Symmetric and bounded. NaN where either has a probability that is no number.
    """
    return divergence.jensen_shannon(_logs(p), _logs(q)).numpy()


def kullback_leibler(p: Values, q: Values) -> Values:
    """(n, c), (n, c) -> (n,) what is lost by taking q for p, in bits; q is nowhere below 1e-10.

    NaN where either has a probability that is no number.
    """
    return divergence.kullback_leibler(_logs(p), _logs(q, EPSILON)).numpy()


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for all of them being looked at (Holm 1979), in their order."""
    order = np.argsort(p)
    steps = np.array(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(x) for x in adjusted]


def relative(one: Values, full: Values, cluster: Values) -> dict[str, Any]:
    """Accuracy of `one` as a share of that of the unreduced model, with an interval.

    None where the unreduced model has no right answer.
    """
    ours, theirs = resampled(one, cluster), resampled(full, cluster)  # the same pictures in both
    if not full.any():
        return {"relative": None, "interval": None}
    drawn = theirs > 0
    low, high = np.percentile(ours[drawn] / theirs[drawn], [2.5, 97.5])
    share = float(one.mean()) / float(full.mean())
    return {"relative": round(share, 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def non_inferiority(
    one: Values, other: Values, cluster: Values, margin: float, alpha: float = 0.05
) -> dict[str, Any]:
    """Whether `one` is shown to lose less than `margin` of its answers against `other`.

    One-sided. Not finding a difference is no evidence that there is none; this test has the loss
    of `margin` as the hypothesis to be refuted. It is Tango's score test of paired shares (1998,
    Statistics in Medicine 17), which holds where few or no answers differ, at the number of
    questions that the pictures amount to (`design_effect`).

    Args:
        one: (n,) right (1) or wrong (0), or the mean of several seeds.
        other: (n,) of the condition it is compared with.
        cluster: (n,) which picture each question is about.
        margin: a share of all answers, above 0.
        alpha: one-sided level.

    Returns:
        `lower` one-sided bound of the difference, `p`, and the `power` against a reduction that
        loses nothing and changes as many answers. With one picture nothing is shown: p is 1.

    Raises:
        ValueError: a margin outside 0 to 1.
    """
    check_margin(margin)
    change = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    if len(np.unique(cluster)) < 2:
        return {"margin": margin, "lower": -1.0, "p": 1.0, "power": 0.0}
    size = len(change) / design_effect(change, cluster)
    won, lost = (float(x.mean()) * size for x in (np.maximum(change, 0), np.maximum(-change, 0)))
    z = float(norm.ppf(1 - alpha))
    middle = (won - lost) / size
    lower = -1.0
    if middle > -1 and _score(won, lost, size, -1 + EPSILON)[0] > z:
        edge = middle - EPSILON
        lower = brentq(lambda x: _score(won, lost, size, x)[0] - z, -1 + EPSILON, edge)
    score, spread = _score(won, lost, size, -margin)
    return {
        "margin": margin,
        "lower": round(float(lower), 4),
        "p": float(norm.sf(score)),
        "power": round(float(norm.sf(z - margin * size / spread)), 3),
    }


def _score(won: float, lost: float, n: float, difference: float) -> tuple[float, float]:
    """Tango's statistic of a difference of paired shares, and the spread of its numerator."""
    a = 2 * n
    b = -won - lost + (2 * n - won + lost) * difference
    c = -lost * difference * (1 - difference)
    share = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    spread = sqrt(max(n * (2 * share + difference * (1 - difference)), EPSILON))
    return (won - lost - n * difference) / spread, spread


def design_effect(change: Values, cluster: Values) -> float:
    """How many questions are worth one, because those about one picture go together; at least 1.

    1 + (m - 1) r with m questions about a picture and r the correlation of changes within
    pictures (analysis of variance; Donner and Klar 2000, chapter 1). Where few pictures have any
    change r is hardly known, so it is shrunk towards 1: as if `PRIOR_CLUSTERS` more pictures had
    been seen that change as a whole.
    """
    names, at = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(at).astype(float)
    groups, n = len(names), len(change)
    m = (n - float((sizes**2).sum()) / n) / max(groups - 1, 1)
    if m <= 1:
        return 1.0
    means = np.bincount(at, weights=change) / sizes
    between = float((sizes * (means - change.mean()) ** 2).sum()) / (groups - 1)
    within = float(((change - means[at]) ** 2).sum()) / max(n - groups, 1)
    total = between + (m - 1) * within
    r = min(max((between - within) / total, 0.0), 1.0) if total else 1.0
    seen = int((np.bincount(at, weights=np.abs(change)) > 0).sum())
    r = (seen * r + PRIOR_CLUSTERS) / (seen + PRIOR_CLUSTERS)
    return 1 + (m - 1) * r


def planned_power(n: int, margin: float, changing: float, alpha: float = 0.05) -> float:
    """The chance that n questions show non-inferiority of a condition that loses nothing.

    changing: the share of questions whose answers become right or wrong; half each.
    """
    check_margin(margin)
    return float(norm.sf(norm.ppf(1 - alpha) - margin * sqrt(n / max(changing, EPSILON))))


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
    """`mean` of paired differences, and the one-sided p-value of its not being above 0."""
    return {**mean(values, cluster), "p": paired_t(values, cluster, two_sided=False)}


def paired_t(values: Values, cluster: Values, two_sided: bool = True) -> float:
    """The p-value of a mean of paired differences being 0, or with one side not above 0.

    Student's t of the mean with the standard error over pictures, of as many degrees of freedom
    less one. Never below what flipping the signs of whole pictures could show (one in 2 to the
    number of pictures), so that few pictures prove nothing however alike they are.
    """
    names, at = np.unique(cluster, return_inverse=True)
    groups = len(names)
    if groups < 2:
        return 1.0
    middle = float(values.mean())
    sums = np.bincount(at, weights=values - middle)
    spread = sqrt(float((sums**2).sum()) * groups / (groups - 1)) / len(values)
    sides = 2 if two_sided else 1
    if middle == 0 or (not two_sided and middle < 0 and spread == 0):
        return 1.0 if two_sided or spread == 0 else 0.5
    score = abs(middle) / max(spread, EPSILON) if two_sided else middle / max(spread, EPSILON)
    p = float(student.sf(score, groups - 1)) * sides
    return min(max(p, sides * 0.5**groups), 1.0)


def check_margin(margin: float) -> None:
    """Stop a margin that no difference of shares can have.

    Raises:
        ValueError: it does not lie between 0 and 1.
    """
    if isinstance(margin, bool) or not 0 < margin < 1:
        raise BadOption(
            f"margin={margin!r}: it is the share of answers that may be lost, above 0 and below 1"
        )


def _logs(p: Values, least: float = 0.0) -> Tensor:
    """(n, c) -> (n, c + 1) log-probabilities: what is left of 1 is one more outcome."""
    p = np.clip(np.asarray(p, dtype=float), 0.0, 1.0)
    rest = np.clip(1 - p.sum(axis=1, keepdims=True), 0.0, 1.0)
    full = np.concatenate([p, rest], axis=1)
    full = np.maximum(full / full.sum(axis=1, keepdims=True), least)
    return torch.from_numpy(full / full.sum(axis=1, keepdims=True)).log()
