"""Paired statistics against hand values, known sizes, and their own opposites."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tokenreduce.evaluation import statistics as st


def pairs(both: int, gained: int, lost: int, neither: int):
    one = [True] * both + [True] * gained + [False] * lost + [False] * neither
    other = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return np.array(one), np.array(other)


def alone(n: int):
    return np.arange(n)


def test_mcnemar_is_the_binomial_of_what_differs():
    one, other = pairs(50, 2, 10, 38)
    assert st.mcnemar(one, other) == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert st.mcnemar(one, other) == st.mcnemar(other, one)
    assert st.mcnemar(one, one) == 1.0


def test_divergences_by_hand():
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])
    assert st.jensen_shannon(p, q) == pytest.approx([0.0, 1.0])
    assert st.kullback_leibler(p, p) == pytest.approx([0.0, 0.0], abs=1e-9)
    assert st.kullback_leibler(p, q)[1] == pytest.approx(np.log2(1e10), rel=1e-6)
    # 0.25 of each lies outside of the candidates: the rest is an outcome of its own
    a, b = np.array([[0.75, 0.0]]), np.array([[0.0, 0.75]])
    assert st.jensen_shannon(a, b)[0] == pytest.approx(0.75)


def test_holm_by_hand():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.6, 0.9]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_the_same_answers_differ_in_nothing():
    right, _ = pairs(80, 0, 0, 20)
    assert st.relative(right, right, alone(100)) == {"relative": 1.0, "interval": [1.0, 1.0]}
    found = st.non_inferiority(right, right, alone(100), 0.05)
    assert 0 < found["p"] < 0.01
    assert -0.05 < found["lower"] < 0  # no certainty even where nothing differs
    assert st.greater(np.zeros(100), alone(100))["p"] == 1.0
    assert st.greater(np.ones(100), alone(100))["p"] < 0.001
    assert st.greater(np.ones(100), np.zeros(100))["p"] == 1.0  # all about one picture


@pytest.mark.parametrize("deff", [1, 6])
def test_non_inferiority_errs_as_often_as_it_says(deff):
    """At the margin itself the test may pass in at most about alpha of all samples."""
    rng, passed, rounds, n = np.random.default_rng(1), 0, 600, 240
    cluster = np.repeat(np.arange(n // deff), deff)
    for _ in range(rounds):
        lost = np.repeat(rng.random(n // deff) < 0.15, deff)
        gained = np.repeat(rng.random(n // deff) < 0.05, deff) & ~lost  # 0.0425 in the mean
        margin = 0.15 - 0.05 * 0.85
        found = st.non_inferiority(gained, lost, cluster, margin)
        passed += found["p"] < 0.05
    assert 0.01 <= passed / rounds <= 0.09


def test_clusters_that_go_together_widen():
    change = np.tile([1.0, 0.0], 50)
    assert st.design_effect(change, np.arange(100) // 2) == 1.0  # opposites within a picture
    together = np.repeat([1.0, 0.0], 50)
    assert st.design_effect(together, np.arange(100) // 10) > 5


def test_power_grows_to_what_is_asked_for():
    n = st.needed(0.02, 0.1)
    assert st.planned_power(n, 0.02, 0.1) == pytest.approx(0.8, abs=0.001)
    assert st.planned_power(60, 0.02, 0.1) < 0.15
    assert n == 1546  # 0.1 * ((1.6449 + 0.8416) / 0.02) ** 2


def test_divergence_sees_what_flips_do_not():
    """The point of recording distributions: power at a size where answers hardly flip."""
    rng, wins, flips = np.random.default_rng(0), 0, 0
    for _ in range(60):
        logits = rng.normal(0, 3, (100, 2))

        def soft(x):
            e = np.exp(x - x.max(axis=1, keepdims=True))
            return e / e.sum(axis=1, keepdims=True)

        noise = logits + rng.normal(0, 0.5, (100, 2))
        moved = logits + rng.normal(0, 0.5, (100, 2)) + rng.normal(0, 0.7, (100, 2))
        base, harmless, target = soft(logits), soft(noise), soft(moved)
        change = st.jensen_shannon(base, target) - st.jensen_shannon(base, harmless)
        wins += st.greater(change, alone(100))["p"] < 0.05
        a, b = base.argmax(1) != target.argmax(1), base.argmax(1) != harmless.argmax(1)
        flips += st.mcnemar(a, b) < 0.05
    assert wins > 50
    assert flips < 15


@pytest.mark.parametrize("margin", [0, -0.1, 1, 2, True])
def test_margins_that_mean_nothing_are_refused(margin):
    with pytest.raises(ValueError, match="margin="):
        st.planned_power(10, margin, 0.1)
