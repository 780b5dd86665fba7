"""The table against answers that were made up: every number by hand, and pairing matters."""

from __future__ import annotations

import numpy as np
import pytest

from tokenreduce.evaluation.comparing import Level, compare

N = 40
FULL = {"strategy": None, "scheduler": None, "positions": None, "seed": 0, "change": None}
STOP = {"name": "single", "layer": 0}


def rows(right, p_yes=0.9, cost=50, images=None):
    return {
        str(i): {
            "item": str(i),
            "image": i if images is None else images[i],
            "group": ("a", "b")[i % 2],
            "correct": bool(right[i]),
            "probabilities": {"yes": p_yes, "no": round(1 - p_yes, 6)},
            "visual": 100,
            "average": cost,
            "stops": {"0": cost},
            "flops": cost,
            "flops_full": 100,
            "kv_bytes": cost,
            "kv_bytes_full": 200,
        }
        for i in range(len(right))
    }


def reduced(name, seed=0, **more):
    return {
        **FULL,
        "strategy": {"name": name},
        "scheduler": STOP,
        "positions": "keep",
        "seed": seed,
        **more,
    }


LEVEL = Level(0.05)


def table(**conditions):
    noted = {key: {"condition": condition} for key, (condition, _) in conditions.items()}
    answers = {key: found for key, (_, found) in conditions.items()}
    return compare(noted, answers, LEVEL)


def test_one_table_by_hand():
    whole = [1] * 38 + [0] * 2
    half = [0] * 10 + [1] * 30
    found = table(
        full=(FULL, rows(whole)),
        ours=(reduced("fastv"), rows(half, p_yes=0.5)),
        r0=(reduced("random", 0), rows([0] * 20 + [1] * 20)),
        r1=(reduced("random", 1), rows([0] * 10 + [1] * 30)),
        jpeg=({**FULL, "change": "jpeg"}, rows(whole, p_yes=0.88)),
    )
    assert [row["role"] for row in found] == ["full", "harmless", "baseline", "tested"]
    full, harmless, null, ours = found
    assert full["accuracy"] == 0.95
    assert full["verdict"] == ""
    assert harmless["difference"] == 0
    assert harmless["flops_share"] == 0.5  # what the rows say
    assert null["seeds"] == [0, 1]
    assert null["accuracy"] == pytest.approx(25 / 40)
    assert null["mcnemar"] is None
    assert ours["accuracy"] == 0.75
    assert ours["relative"]["relative"] == pytest.approx(0.7895, abs=1e-4)
    assert ours["difference"] == -0.2
    assert ours["mcnemar"] == {
        "p": pytest.approx(0.0385, abs=1e-4),
        "gained": 2,
        "lost": 10,
        "holm": ours["mcnemar"]["p"],
    }
    assert ours["jsd"]["mean"] == pytest.approx(0.1468, abs=1e-3)
    assert ours["against"]["random"]["difference"] == 0.125
    assert ours["beyond"]["jpeg"]["p"] < 0.01
    assert ours["non_inferiority"]["p"] > 0.9
    assert ours["verdict"] == "worse"
    assert (ours["flops_share"], ours["kv_share"], ours["stops"]) == (0.5, 0.25, {"0": 50.0})
    assert ours["kinds"]["a"]["accuracy"] == 0.75


def test_the_same_answers_are_not_inferior_where_the_questions_suffice():
    whole = [1] * 300
    found = table(full=(FULL, rows(whole)), ours=(reduced("fastv"), rows(whole)))
    assert found[1]["verdict"] == "loss < 5 pts"
    assert found[1]["mcnemar"]["p"] == 1.0
    assert found[1]["jsd"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    few = table(full=(FULL, rows(whole[:20])), ours=(reduced("fastv"), rows(whole[:20])))
    assert few[1]["verdict"] == "inconclusive"


def test_divergences_are_of_the_same_question():
    whole = [1] * N
    own = rows(whole)
    for i in range(N):
        own[str(i)]["probabilities"] = {"yes": i / N, "no": 1 - i / N}
    mixed = dict(reversed(own.items()))  # the order of answers on disk decides nothing
    found = table(full=(FULL, own), ours=(reduced("fastv"), mixed))
    assert found[1]["jsd"]["mean"] == 0.0
    assert found[1]["kl"]["mean"] == pytest.approx(0.0, abs=1e-6)


def test_differences_are_paired():
    """The same number of right answers, to the same questions or to others: not the same news."""
    rng = np.random.default_rng(0)
    whole = rng.random(400) < 0.5
    same, shuffled = whole.copy(), rng.permutation(whole)
    same[:4] = ~same[:4]

    def width(right):
        row = table(full=(FULL, rows(whole)), ours=(reduced("fastv"), rows(right)))[1]
        low, high = row["difference_interval"]
        return high - low

    assert width(shuffled) > 3 * width(same)


def test_answers_about_one_picture_go_together():
    whole, half = [1] * N, [0] * 20 + [1] * 20
    images = [i // 10 for i in range(N)]

    def width(images):
        row = table(
            full=(FULL, rows(whole, images=images)),
            ours=(reduced("fastv"), rows(half, images=images)),
        )[1]
        low, high = row["difference_interval"]
        return high - low

    assert width(images) > 2 * width(None)


def test_nulls_under_another_schedule_are_not_compared():
    whole = [1] * N
    other = {"name": "single", "layer": 4}
    found = table(
        full=(FULL, rows(whole)),
        ours=(reduced("fastv"), rows(whole)),
        here=(reduced("stride"), rows(whole)),
        there=(reduced("pooling", scheduler=other), rows(whole)),
        compact=(reduced("random", positions="compact"), rows(whole)),
        small=(reduced("downsample", scheduler=other), rows(whole)),
    )
    assert set(found[-1]["against"]) == {"stride", "downsample"}


def test_questions_that_a_change_leaves_out():
    whole = [1] * N
    part = {k: row for k, row in rows([0] * N).items() if int(k) < 10}
    found = table(
        full=(FULL, rows(whole)),
        paraphrase=({**FULL, "change": "paraphrase"}, part),
        ours=(reduced("fastv"), rows(whole)),
    )
    assert (found[1]["questions"], found[1]["difference"]) == (10, -1.0)
    assert found[2]["beyond"]["paraphrase"]["mean"] == 0.0  # of the ten that both have


def follow(pairs, edit=0.3):
    whole = [1] * N
    noted = [
        {
            "item": str(i),
            "image": i,
            "other": a,
            "paraphrase": b,
            "edit_other": 0.3,
            "edit_paraphrase": edit,
        }
        for i, (a, b) in enumerate(pairs)
    ]
    ours = {"condition": reduced("fastv"), "following": noted}
    found = compare(
        {"full": {"condition": FULL}, "ours": ours}, {key: rows(whole) for key in ("full", "ours")}
    )
    return found[1]["following"]


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        ([(0.0, 0.0)] * 20, "does not read the text"),
        ([(0.5, 0.1), (0.6, 0.2)] * 10, "follows the text"),
        ([(0.3, 0.3), (0.2, 0.4)] * 10, "moves, not shown to follow the text"),
        ([(0.9, 0.0)], "moves, not shown to follow the text"),  # one picture shows nothing
    ],
)
def test_following(pairs, verdict):
    assert follow(pairs)["verdict"] == verdict


def test_paraphrases_that_differ_less_than_the_other_question_are_left_out():
    found = follow([(0.9, 0.1)] * 20, edit=0.05)
    assert (found["questions"], found["left_out"], found["verdict"]) == (0, 20, "moves")


def test_null_reducers_that_cost_something_else_have_their_cost_alone():
    whole, half = [1] * N, [0] * 20 + [1] * 20
    small = {"name": "single", "layer": 0, "keep": 0.7}
    found = table(
        full=(FULL, rows(whole)),
        ours=(reduced("tome"), rows(whole, cost=80)),
        same=(reduced("stride"), rows(half, cost=79)),
        less=(reduced("random"), rows(half, cost=26)),
        near=(reduced("downsample", scheduler=small), rows(half, cost=81)),
        far=(reduced("downsample", scheduler=STOP), rows(half, cost=30)),
        later=(reduced("pooling", min_tokens=9), rows(half, cost=80)),
    )
    against = next(row for row in found if row["role"] == "tested")["against"]
    assert set(against) == {"stride", "random", "downsample"}
    assert against["stride"]["difference"] == against["downsample"]["difference"] == 0.5
    assert against["downsample"]["flops_share"] == 0.81
    assert against["random"] == {"flops_share": 0.26}


def test_one_picture_shows_nothing():
    whole, half = [1] * N, [0] * 36 + [1] * 4
    images = [7] * N
    found = table(
        full=(FULL, rows(whole, images=images)),
        ours=(reduced("fastv"), rows(half, images=images)),
        same=(reduced("stride"), rows(whole, images=images)),
        r0=(reduced("random", 0), rows(half, images=images)),
        r1=(reduced("random", 1), rows(half, images=images)),
    )
    assert {row["verdict"] for row in found[1:]} == {"inconclusive"}
    low, high = found[-1]["interval"]
    assert low < high


def test_a_full_model_that_is_never_right():
    found = table(full=(FULL, rows([0] * N)), ours=(reduced("fastv"), rows([1] + [0] * 39)))
    assert found[1]["relative"] == {"relative": None, "interval": None}


def test_without_the_full_model_nothing_is_compared():
    with pytest.raises(ValueError, match="unreduced model has not answered"):
        table(ours=(reduced("fastv"), rows([1] * N)))


def test_mcnemar_only_where_every_question_has_its_own_picture():
    whole, half = [1] * N, [0] * 10 + [1] * 30
    alone = table(full=(FULL, rows(whole)), ours=(reduced("fastv"), rows(half)))[1]
    assert alone["mcnemar"]["p"] == pytest.approx(alone["paired"]["p"])
    images = [i // 10 for i in range(N)]
    shared = table(
        full=(FULL, rows(whole, images=images)), ours=(reduced("fastv"), rows(half, images=images))
    )[1]
    assert shared["mcnemar"] is None
    assert shared["paired"]["p"] == 1.0  # one picture changed, however many questions it has


def test_probabilities_that_are_no_numbers_are_counted_as_such():
    whole = [1] * N
    broken = rows(whole)
    for i in range(5):
        broken[str(i)]["probabilities"] = {"yes": None, "no": None}
        broken[str(i)]["correct"] = False
    found = table(full=(FULL, rows(whole)), ours=(reduced("fastv"), broken))[1]
    assert found["not_finite"] == 5
    assert found["difference"] == -5 / N
    assert found["jsd"]["mean"] == 0  # of the 35 others
    for i in range(N):
        broken[str(i)]["probabilities"] = {"yes": float("nan"), "no": 0.5}
    found = table(full=(FULL, rows(whole)), ours=(reduced("fastv"), broken))[1]
    assert (found["not_finite"], found["jsd"], found["kl"]) == (N, None, None)
