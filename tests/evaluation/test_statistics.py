"""Paired statistics against hand values, known sizes, and their own opposites."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm, ttest_1samp

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


def test_flipped_pictures_by_hand():
    """Of the 2^3 signs of the sums 2, 1 and -1, six are as far from 0 as 2 is."""
    change, cluster = np.array([1.0, 1, 1, 0, -1]), np.array([0, 0, 1, 1, 2])
    assert st.sign_flip(change, cluster) == pytest.approx(6 / 8)
    assert st.sign_flip(change / 5, cluster, runs=5) == pytest.approx(6 / 8)
    assert st.sign_flip(np.zeros(5), cluster) == 1.0
    assert st.sign_flip(np.ones(600), np.zeros(600)) == 1.0  # one picture shows nothing


def test_where_items_are_independent_flipping_is_mcnemar():
    one, other = pairs(50, 2, 10, 38)
    change = one.astype(float) - other
    assert st.sign_flip(change, alone(100)) == pytest.approx(st.mcnemar(one, other))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_flipping_errs_no_more_often_than_it_says(rate):
    """50 pictures with 6 questions each, whose answers change together: the table's p-value."""
    rng, passed, rounds = np.random.default_rng(0), 0, 1000
    cluster = np.repeat(np.arange(50), 6)
    for _ in range(rounds):
        drawn = rng.random(50)
        change = np.repeat(np.where(drawn < rate / 2, -1.0, np.where(drawn < rate, 1.0, 0.0)), 6)
        passed += st.sign_flip(change, cluster) <= 0.05
    assert passed / rounds <= 0.06


def test_divergences_by_hand():
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])
    assert st.jensen_shannon(p, q) == pytest.approx([0.0, 1.0])
    assert st.kullback_leibler(p, p) == pytest.approx([0.0, 0.0], abs=1e-9)
    assert st.kullback_leibler(p, q)[1] == pytest.approx(np.log2(1e10), rel=1e-6)
    # 0.25 of each lies outside of the candidates: the rest is an outcome of its own
    a, b = np.array([[0.75, 0.0]]), np.array([[0.0, 0.75]])
    assert st.jensen_shannon(a, b)[0] == pytest.approx(0.75)


@pytest.mark.parametrize("divergence", [st.jensen_shannon, st.kullback_leibler])
def test_what_is_no_number_has_no_divergence(divergence):
    """Least of all 0, which would say that nothing changed."""
    p, q = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.5, np.nan], [0.5, 0.5]])
    for found in (divergence(p, q), divergence(q, p)):
        assert np.isnan(found[0])
        assert found[1] == pytest.approx(0.0, abs=1e-9)


def test_holm_by_hand():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.6, 0.9]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_the_same_answers_differ_in_nothing():
    right, _ = pairs(80, 0, 0, 20)
    assert st.relative(right, right, alone(100)) == {"relative": 1.0, "interval": [1.0, 1.0]}
    found = st.non_inferiority(right, right, alone(100), 0.05)
    assert 0 < found["p"] < 0.02
    assert -0.05 < found["lower"] < 0  # no certainty even where nothing differs
    assert st.greater(np.zeros(100), alone(100))["p"] == 1.0
    assert st.greater(np.ones(100), alone(100))["p"] < 0.001
    assert st.greater(np.ones(100), np.zeros(100))["p"] == 1.0  # all about one picture


def lost(rng, kind, pictures, each, margin):
    """(n,) changes of a reduction that loses exactly the margin, in some way or other."""
    n = pictures * each
    if kind == "whole pictures":
        return -np.repeat(rng.random(pictures) < margin, each).astype(float)
    if kind == "by picture":
        chance = np.repeat(rng.beta(2 * margin, 2 * (1 - margin), pictures), each)
        return -(rng.random(n) < chance).astype(float)
    drawn = rng.random(n) if kind == "alone" else np.repeat(rng.random(pictures), each)
    return np.where(drawn < 0.05 + margin, -1.0, np.where(drawn < 0.1 + margin, 1.0, 0.0))


@pytest.mark.parametrize("kind", ["whole pictures", "by picture", "alone", "both ways together"])
@pytest.mark.parametrize(
    ("pictures", "each", "margin"), [(50, 8, 0.02), (30, 10, 0.05), (10, 10, 0.1), (400, 1, 0.02)]
)
def test_non_inferiority_errs_no_more_often_than_it_says(kind, pictures, each, margin):
    """At the margin itself the test may pass in at most alpha of all samples."""
    rng, passed, rounds = np.random.default_rng(1), 0, 200
    cluster, zero = np.repeat(np.arange(pictures), each), np.zeros(pictures * each)
    for _ in range(rounds):
        change = lost(rng, kind, pictures, each, margin)
        passed += st.non_inferiority(change, zero, cluster, margin)["p"] < 0.05
    assert passed / rounds <= 0.1  # 0.05 and three standard errors


def test_non_inferiority_shows_what_there_is_to_show():
    """With half of the power that questions about as many pictures would have, or more."""
    rng, passed, rounds = np.random.default_rng(1), 0, 100
    cluster = np.repeat(np.arange(100), 9)
    for _ in range(rounds):
        drawn = rng.random(900)
        change = np.where(drawn < 0.04, -1.0, np.where(drawn < 0.08, 1.0, 0.0))
        passed += st.non_inferiority(change, np.zeros(900), cluster, 0.03)["p"] < 0.05
    assert passed / rounds > 0.7


def test_the_score_test_by_hand():
    """With nothing changed the statistic is sqrt(n d / (1 - d)); see Tango 1998."""
    zero = np.zeros(300)
    found = st.non_inferiority(zero, zero, alone(300), 0.02)
    assert found["p"] == pytest.approx(norm.sf(np.sqrt(300 * 0.02 / 0.98)))
    bound = found["lower"]  # where that statistic is 1.645
    assert bound == pytest.approx(-(1.6449**2) / (300 + 1.6449**2), abs=1e-4)


def test_clusters_that_go_together_count_as_fewer():
    change = np.tile([1.0, 0.0], 50)
    assert st.design_effect(change, np.arange(100)) == 1.0  # one question about each
    assert st.design_effect(change, np.arange(100) // 2) < 1.1  # opposites within a picture
    together = np.repeat([1.0, 0.0], 50)
    assert st.design_effect(together, np.arange(100) // 10) == pytest.approx(10)
    assert st.design_effect(np.zeros(100), np.arange(100) // 10) == pytest.approx(10)  # unknown


@pytest.mark.parametrize("pictures", [2, 3, 5, 8, 40])
def test_paired_t_errs_no_more_often_than_it_says(pictures):
    rng, passed, rounds = np.random.default_rng(2), 0, 400
    cluster = np.repeat(np.arange(pictures), 6)
    for _ in range(rounds):
        values = np.repeat(rng.normal(0, 1, pictures), 6) + rng.normal(0, 0.3, pictures * 6)
        passed += st.greater(values, cluster)["p"] < 0.05
    assert passed / rounds <= 0.09


def test_paired_t_by_hand():
    values, cluster = np.array([1.0, 2.0, 3.0, 6.0]), alone(4)
    assert st.paired_t(values, cluster) == pytest.approx(
        max(ttest_1samp(values, 0).pvalue, 2 * 0.5**4)
    )
    many = np.tile(values, 10)
    wanted = ttest_1samp(many, 0, alternative="less").pvalue
    assert st.paired_t(-many, alone(40)) == pytest.approx(ttest_1samp(many, 0).pvalue)
    assert st.paired_t(-many, alone(40), two_sided=False) == pytest.approx(wanted)


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
