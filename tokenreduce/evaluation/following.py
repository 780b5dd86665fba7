"""What is measured once of a condition: its prefill time, and whether it follows the text."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreduce.data.items import Item
from tokenreduce.evaluation.asking import inputs_of
from tokenreduce.evaluation.conditions import FULL, Condition
from tokenreduce.inference.loaded import Loaded
from tokenreduce.inference.measure import prefill, prefill_times


def times(loaded: Loaded, condition: Condition, items: Sequence[Item], runs: int) -> dict[str, Any]:
    """Prefill times of single prompts and of the unreduced model, in turn: ms, and their ratio.

    The ratio is the median over prompts and rounds of one time over its neighbour's.
    """
    full, ours, ratios = [], [], []
    for item in items:
        plain, _ = inputs_of(loaded, FULL, [item])
        short, _ = inputs_of(loaded, condition, [item])
        contexts = (nullcontext, condition.reduction(loaded))
        before, after = prefill_times(loaded.model, (plain, short), contexts, runs)
        full += before
        ours += after
        ratios += [a / b for a, b in zip(after, before, strict=True)]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {
        "prefill_ms": round(statistics.median(ours), 3),
        "prefill_ms_full": round(statistics.median(full), 3),
        "prefill_ratio": round(float(middle), 4),
        "quartiles": [round(float(low), 4), round(float(high), 4)],
        "prompts": len(items),
        "runs": runs,
    }


def following(
    loaded: Loaded, condition: Condition, items: Sequence[Item], others: Mapping[str, Item]
) -> list[dict[str, Any]]:
    """How far the kept tokens move under another question, and under the same in other words.

    Both are 1 - |A & B| / |A | B| of the kept sets (Jaccard's distance), the mean over the stops.
    A choice that does not read the text moves under neither; one that reads the wording but not
    the meaning moves as much under both.

    Args:
        loaded: the model.
        condition: a reduction.
        items: questions that have a paraphrase and, in `others`, another question about the
            same picture.
        others: by name of the question.
    """
    rows = []
    for item in items:
        assert item.paraphrase is not None  # `pairs` leaves others out
        other = others[item.name].question
        kept = [
            _kept(loaded, condition, item, text) for text in (item.question, other, item.paraphrase)
        ]
        rows.append(
            {
                "item": item.name,
                "image": item.image,
                "other": _distance(kept[0], kept[1]),
                "paraphrase": _distance(kept[0], kept[2]),
                "edit_other": _edit(item.question, other),
                "edit_paraphrase": _edit(item.question, item.paraphrase),
            }
        )
    return rows


def pairs(items: Sequence[Item]) -> dict[str, Item]:
    """By name of a question that has a paraphrase, another question about the same picture.

    The one whose wording differs from it about as much as the paraphrase does, so that what is
    compared is the meaning.
    """
    found = {}
    for item in items:
        if item.paraphrase is None:
            continue
        near = [
            other
            for other in items
            if other.image == item.image and other.question != item.question
        ]
        if near:
            goal = _edit(item.question, item.paraphrase)
            found[item.name] = min(
                near,
                key=lambda other: (abs(_edit(item.question, other.question) - goal), other.name),
            )
    return found


def spread(items: Sequence[Item], others: Mapping[str, Item], number: int) -> list[Item]:
    """`number` of the questions that have another: of many pictures, of wordings that compare.

    One of every picture before a second of any, since pictures are what was sampled; of a picture
    first the question whose two rewordings differ from it most alike.
    """

    def mismatch(item: Item) -> float:
        assert item.paraphrase is not None  # `pairs` leaves others out
        change = _edit(item.question, others[item.name].question)
        return abs(change - _edit(item.question, item.paraphrase))

    turn: dict[int | str, int] = {}
    ranked = []
    asked = [item for item in items if item.name in others]
    for item in sorted(asked, key=lambda item: (mismatch(item), item.name)):
        turn[item.image] = turn.get(item.image, -1) + 1
        ranked.append((turn[item.image], mismatch(item), item.name, item))
    return [item for *_, item in sorted(ranked, key=lambda row: row[:3])[:number]]


def _kept(loaded: Loaded, condition: Condition, item: Item, question: str) -> list[Tensor]:
    inputs, _ = inputs_of(loaded, condition, [replace(item, question=question)])
    with torch.inference_mode(), condition.reduction(loaded)() as reduction:
        prefill(loaded.model, inputs)
        return [rows[0] for rows in reduction.kept.values()]


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    shares = []
    for a, b in zip(one, other, strict=True):
        left, right = set(a.tolist()), set(b.tolist())
        union = len(left | right)
        shares.append(1 - len(left & right) / union if union else 0.0)
    return round(statistics.fmean(shares), 5) if shares else 0.0


def _edit(one: str, other: str) -> float:
    """How different two texts are word by word, 0 to 1."""
    return 1 - difflib.SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()
