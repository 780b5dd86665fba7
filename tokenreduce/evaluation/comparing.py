"""One table from the answers of many conditions: paired, against the unreduced model of the run.

Conditions that differ in their seed alone are one row, of the mean over seeds. Every difference is
between answers to the same questions; intervals draw pictures, not questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenreduce.errors import BadOption
from tokenreduce.evaluation import statistics as st
from tokenreduce.evaluation.intervals import clustered, shares
from tokenreduce.evaluation.records import Row

BASELINES = ("random", "stride", "pooling", "downsample")
EQUAL = 0.02
"""Shares of FLOPs that are no further apart than this are equal."""
WORDING = 0.15
"""Edit distances that are no further apart than this are alike."""
COSTS = ("flops", "kv_bytes")
Conditions = Mapping[str, Mapping[str, Any]]
Answers = Mapping[str, Mapping[str, Row]]


@dataclass(frozen=True)
class Level:
    """What is to be shown: no loss of more than `margin` of the answers, at level `alpha`."""

    margin: float = 0.02
    alpha: float = 0.05


@dataclass(frozen=True)
class Group:
    """A condition under all its seeds, with its answers in the order of `names`.

    right: (n,) share of the seeds that answer right; jsd, kl: (n,) from the full model, in bits,
    NaN where a probability is no number.
    """

    condition: Mapping[str, Any]
    seeds: list[int]
    noted: list[Mapping[str, Any]]
    rows: list[list[Row]]
    right: np.ndarray[Any, Any]
    jsd: np.ndarray[Any, Any]
    kl: np.ndarray[Any, Any]

    @property
    def role(self) -> str:
        """What the row is there for: full, harmless, baseline or tested."""
        if self.condition["strategy"] is None:
            return "full" if self.condition["change"] is None else "harmless"
        return "baseline" if self.condition["strategy"]["name"] in BASELINES else "tested"


def compare(noted: Conditions, answers: Answers, level: Level = Level()) -> list[dict[str, Any]]:
    """The rows of the table, the full model first.

    Args:
        noted: what is noted of each condition: `condition`, `prefill`, `following`.
        answers: of each condition, by name of the question; only complete ones.
        level: what is to be shown.

    Returns:
        Plain data for JSON, a row per condition. A harmless change of the input may leave
        questions out; its row then compares those that it has.

    Raises:
        ValueError: the full model has not answered.
    """
    full_key = next(
        (k for k, n in noted.items() if _is_full(n["condition"]) and k in answers), None
    )
    if full_key is None:
        raise BadOption("the unreduced model has not answered: nothing to compare with")
    groups = _groups(noted, answers, answers[full_key])
    full = next(group for group in groups if group.role == "full")
    rows = [_row(group, full, groups, level) for group in groups]
    for test in ("mcnemar", "paired", "non_inferiority"):
        own = [row[test] for row in rows if row["role"] in ("tested", "baseline") and row[test]]
        for found, p in zip(own, st.holm([found["p"] for found in own]), strict=True):
            found["holm"] = p
    for row in rows:
        row["verdict"] = _verdict(row, level)
    return rows


def _groups(noted: Conditions, answers: Answers, full: Mapping[str, Row]) -> list[Group]:
    together: dict[str, list[str]] = {}
    for key, note in noted.items():
        if key in answers:
            same = {k: v for k, v in note["condition"].items() if k != "seed"}
            together.setdefault(repr(sorted(same.items())), []).append(key)
    found = [
        _group([noted[k] for k in keys], [answers[k] for k in keys], full)
        for keys in together.values()
    ]
    order = ("full", "harmless", "baseline", "tested")
    return sorted(found, key=lambda group: order.index(group.role))


def _group(
    noted: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Row]],
    full: Mapping[str, Row],
) -> Group:
    names = [name for name in full if all(name in seed for seed in answers)]
    rows = [[seed[name] for name in names] for seed in answers]
    base = _chances([full[name] for name in names])
    own = [_chances(row) for row in rows]
    return Group(
        noted[0]["condition"],
        [note["condition"]["seed"] for note in noted],
        list(noted),
        rows,
        np.mean([[row["correct"] for row in seed] for seed in rows], axis=0),
        np.mean([st.jensen_shannon(base, seed) for seed in own], axis=0),
        np.mean([st.kullback_leibler(base, seed) for seed in own], axis=0),
    )


def _chances(rows: Sequence[Row]) -> np.ndarray[Any, Any]:
    """(n, c) the candidates' probabilities, NaN where unknown; zeros after shorter lists."""
    width = max(len(row["probabilities"]) for row in rows)
    found = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        own = list(row["probabilities"].values())
        found[i, : len(own)] = np.asarray(own, dtype=float)  # None is NaN
    return found


def _row(group: Group, full: Group, groups: Sequence[Group], level: Level) -> dict[str, Any]:
    """One row of the table."""
    cluster = np.array([str(row["image"]) for row in group.rows[0]])
    kinds = [row["group"] for row in group.rows[0]]
    base = full if len(full.right) == len(group.right) else _only(full, group)
    found: dict[str, Any] = {
        "role": group.role,
        **group.condition,
        "seed": None,
        "seeds": group.seeds,
        "shares": group.noted[0].get("shares", []),
        "questions": len(kinds),
        "of_questions": len(full.right),
        "pictures": len(set(cluster)),
        "not_finite": int((~np.isfinite(group.jsd)).sum()),
        **shares(group.right, kinds, cluster),
        **_cost(group),
        "prefill": _of_notes(group, "prefill"),
        "mcnemar": None,
        "paired": None,
        "non_inferiority": None,
    }
    if group.role == "full":
        return found
    change = group.right - base.right
    low, high = clustered(change, cluster)
    found |= {
        "relative": st.relative(group.right, base.right, cluster),
        "difference": round(float(change.mean()), 4),
        "difference_interval": [round(low, 4), round(high, 4)],
        "changed": round(float((change != 0).mean()), 4),
        "paired": {"p": st.sign_flip(change, cluster, len(group.seeds))},
        "jsd": _mean(group.jsd, cluster),
        "kl": _mean(group.kl, cluster),
        "non_inferiority": st.non_inferiority(
            group.right, base.right, cluster, level.margin, level.alpha
        ),
    }
    alone = len(set(cluster)) == len(cluster)  # else questions are not independent
    if alone and len(group.seeds) == 1:  # a mean over seeds is no yes or no
        one, other = group.right > 0.5, base.right > 0.5
        found["mcnemar"] = {
            "p": st.mcnemar(one, other),
            "gained": int((one & ~other).sum()),
            "lost": int((other & ~one).sum()),
        }
    if group.role in ("tested", "baseline"):
        found["beyond"] = _beyond(group, groups, cluster)
    if group.role == "tested":
        found["against"] = _against(group, groups, cluster)
        found["following"] = _following(group)
    return found


def _beyond(group: Group, groups: Sequence[Group], cluster: Any) -> dict[str, Any]:
    """How much further from the full model's answers than under each harmless change."""
    names = [row["item"] for row in group.rows[0]]
    found = {}
    for other in groups:
        if other.role == "harmless":
            theirs = dict(zip((row["item"] for row in other.rows[0]), other.jsd, strict=True))
            at = [i for i, name in enumerate(names) if name in theirs]
            change = group.jsd[at] - np.array([theirs[names[i]] for i in at])
            known = np.isfinite(change)
            if known.any():
                compared = st.greater(change[known], cluster[at][known])
                found[str(other.condition["change"])] = {"questions": int(known.sum()), **compared}
    for row, p in zip(found.values(), st.holm([row["p"] for row in found.values()]), strict=True):
        row["holm"] = p
    return found


def _against(group: Group, groups: Sequence[Group], cluster: Any) -> dict[str, Any]:
    """The baselines of the same schedule and positions that cost as much.

    Of smaller pictures the nearest in cost. What costs something else has its cost alone: a
    strategy may not keep what its schedule says.
    """
    ours, found = _cost(group)["flops_share"], {}
    costs = [(other, _cost(other)["flops_share"]) for other in groups if other.role == "baseline"]
    for other, share in sorted(costs, key=lambda pair: -abs(pair[1] - ours)):
        fields = ("scheduler", "positions", "min_tokens")
        same = all(other.condition.get(k) == group.condition.get(k) for k in fields)
        name = str(other.condition["strategy"]["name"])
        if not (same or name == "downsample"):
            continue
        found[name] = {"flops_share": share}
        if abs(share - ours) <= EQUAL:
            change = group.right - other.right
            low, high = clustered(change, cluster)
            found[name] |= {
                "difference": round(float(change.mean()), 4),
                "interval": [round(low, 4), round(high, 4)],
                "p": st.sign_flip(change, cluster, len(group.seeds) * len(other.seeds)),
                "jsd": _mean(group.jsd - other.jsd, cluster),
            }
    return found


def _following(group: Group) -> dict[str, Any] | None:
    """Whether the kept tokens move more with the meaning of a question than with its wording.

    Tested on the questions whose paraphrase differs from them about as much as the other question.
    """
    rows = _of_notes(group, "following")
    if not rows:
        return None
    alike = [r for r in rows if abs(r["edit_other"] - r["edit_paraphrase"]) <= WORDING]
    moves = any(row["other"] or row["paraphrase"] for row in rows)
    found: dict[str, Any] = {"questions": len(alike), "left_out": len(rows) - len(alike)}
    if not alike:
        return {**found, "verdict": "moves" if moves else "does not read the text"}
    other, same = (np.array([row[name] for row in alike]) for name in ("other", "paraphrase"))
    cluster = np.array([str(row["image"]) for row in alike])
    beyond = st.greater(other - same, cluster)
    shown = "follows the text" if beyond["p"] < 0.05 else "moves, not shown to follow the text"
    return {
        **found,
        "other": st.mean(other, cluster),
        "paraphrase": st.mean(same, cluster),
        "beyond": beyond,
        "edit_other": round(float(np.mean([row["edit_other"] for row in alike])), 3),
        "edit_paraphrase": round(float(np.mean([row["edit_paraphrase"] for row in alike])), 3),
        "verdict": shown if moves else "does not read the text",
    }


def _mean(values: np.ndarray[Any, Any], cluster: Any) -> dict[str, Any] | None:
    """The mean over the questions whose probabilities are numbers; None where no question's are."""
    known = np.isfinite(values)
    return st.mean(values[known], cluster[known]) if known.any() else None


def _cost(group: Group) -> dict[str, Any]:
    """Shares of FLOPs and cache, visual tokens per layer, kept tokens per stop; means over all."""
    rows = [row for seed in group.rows for row in seed]
    if "flops" not in rows[0]:
        return {"flops_share": 1.0, "kv_share": 1.0, "average_tokens": None, "stops": {}}
    shares_ = {
        name: sum(row[name] for row in rows) / sum(row[f"{name}_full"] for row in rows)
        for name in COSTS
    }
    layers = sorted({int(layer) for row in rows for layer in row["stops"]})
    return {
        "flops_share": round(shares_["flops"], 4),
        "kv_share": round(shares_["kv_bytes"], 4),
        "average_tokens": round(float(np.mean([row["average"] for row in rows])), 2),
        "stops": {
            str(layer): round(
                float(np.mean([row["stops"].get(str(layer), row["visual"]) for row in rows])), 2
            )
            for layer in layers
        },
    }


def _of_notes(group: Group, name: str) -> Any:
    """What was measured of the first seed that has it."""
    return next((note[name] for note in group.noted if note.get(name)), None)


def _verdict(row: Mapping[str, Any], level: Level) -> str:
    """What the row shows, in a word or two."""
    if row["role"] == "full":
        return ""
    shown = row["non_inferiority"]
    if shown.get("holm", shown["p"]) < level.alpha:
        return f"loss < {100 * level.margin:g} pts"
    low, high = row["difference_interval"]
    p = row["paired"].get("holm", row["paired"]["p"])
    if p >= level.alpha or low <= 0 <= high:
        return "inconclusive"
    return "worse" if high < 0 else "better"


def _only(full: Group, group: Group) -> Group:
    """The full model's answers to the questions that another condition has."""
    names = {row["item"] for row in group.rows[0]}
    at = [i for i, row in enumerate(full.rows[0]) if row["item"] in names]
    return Group(
        full.condition,
        full.seeds,
        full.noted,
        [[seed[i] for i in at] for seed in full.rows],
        full.right[at],
        full.jsd[at],
        full.kl[at],
    )


def _is_full(condition: Mapping[str, Any]) -> bool:
    return condition["strategy"] is None and condition["change"] is None
