"""Asks questions of a model under a condition, and keeps what came out of every one.

Batches are the same whatever was answered before and however many processes share them, so that a
resumed or shared evaluation gives the same answers to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import tokenreduce as tr
from tokenreduce.cost import cost_of, shape_of
from tokenreduce.data.items import Item
from tokenreduce.errors import BadOption, is_refused
from tokenreduce.evaluation.conditions import Condition
from tokenreduce.evaluation.records import Row, pack
from tokenreduce.evaluation.scoring import is_right
from tokenreduce.inference.inputs import encode_all, prepare
from tokenreduce.inference.loaded import Loaded

DIGITS = 6


@dataclass(frozen=True)
class Protocol:
    """How questions are put, and what counts as right.

    Attributes:
        batch: questions at once.
        limit: tokens of an answer.
        match: the rule for right answers.
        starts: per kind of question, the ids that an answer may begin with, by answer.
    """

    batch: int
    limit: int
    match: str
    starts: Mapping[str, Mapping[str, Sequence[int]]]


def batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """The questions in groups of about the same length, so that little is padded."""
    order = sorted(items, key=lambda item: (len(item.question), item.name))
    return [order[i : i + size] for i in range(0, len(order), size)]


def inputs_of(
    loaded: Loaded, condition: Condition, items: Sequence[Item]
) -> tuple[Any, Sequence[int] | None]:
    """Model inputs of a batch, and the visual tokens it would have had, where pictures shrink."""
    made = prepare(loaded, condition.recipe, [_picture(item) for item in items])
    questions = [item.question for item in items]
    return encode_all(loaded, questions, [[picture] for picture in made.images]), made.full


def _picture(item: Item) -> Image.Image:
    try:
        return item.picture()
    except ValueError as error:
        if not is_refused(error):
            raise
        raise BadOption(f"question {item.name!r}: {error}") from None


@torch.inference_mode()
def ask(
    loaded: Loaded, condition: Condition, items: Sequence[Item], how: Protocol
) -> Iterator[Row]:
    """One row for every question of a batch."""
    started = time.perf_counter()
    inputs, before = inputs_of(loaded, condition, items)
    with condition.reduction(loaded)() as reduction:
        out = loaded.model.generate(
            **inputs,
            max_new_tokens=how.limit,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        facts = [{}] * len(items) if reduction is None else _facts(reduction, before)
    said = out.sequences[:, inputs["input_ids"].shape[1] :]
    first = out.logits[0].float().softmax(dim=-1).cpu()
    broken = torch.stack([(step.isnan() | step.isposinf()).any(dim=-1) for step in out.logits])
    seconds = (time.perf_counter() - started) / len(items)
    sound = (~broken.any(dim=0)).tolist()
    for item, ids, chances, fact, finite in zip(items, said, first, facts, sound, strict=True):
        answer = loaded.text(ids)
        yield {
            "item": item.name,
            "image": item.image,
            "group": item.kind,
            "question": item.question,
            "expected": list(item.right_answers),
            "answer": answer,
            "correct": finite and is_right(item, answer, how.match),  # else it is chance
            "probabilities": _chances(chances if finite else None, how.starts[item.kind]),
            **fact,
            "seconds": round(seconds, 4),
        }


def _chances(
    chances: Tensor | None, starts: Mapping[str, Sequence[int]]
) -> dict[str, float | None]:
    """How likely the answer is to begin as each candidate does; the rest is not in the list.

    None for each where the model's logits are no numbers.
    """
    if chances is None:
        return dict.fromkeys(starts)
    return {name: round(float(chances[list(ids)].sum()), DIGITS) for name, ids in starts.items()}


def _facts(reduction: tr.Reduction, before: Sequence[int] | None) -> list[dict[str, Any]]:
    """Of every prompt: visual tokens, what every stop kept, and what it costs against the full."""
    report, kept = reduction.report, reduction.kept
    shape = shape_of(reduction.decoder.config)
    value = next(p for p in reduction.decoder.parameters() if p.is_floating_point())
    rows = []
    for i, (visual, text) in enumerate(zip(report.visual_tokens, report.text_tokens, strict=True)):
        layers = [layer[i] for layer in report.tokens_per_layer]
        whole = visual if before is None else before[i]
        price = cost_of(shape, layers, whole + text, bytes_per_value=value.element_size())
        stops = {str(stop["layer"]): stop["kept"][i] for stop in report.stops}
        rows.append(
            {
                "visual": whole,
                "text": text,
                "stops": stops if before is None else {"0": visual},
                "kept": {str(layer): pack(row[i].tolist(), visual) for layer, row in kept.items()},
                "average": round(sum(layers) / len(layers) - text, 3),
                "flops": price.flops,
                "flops_full": price.flops_full,
                "kv_bytes": price.kv_bytes,
                "kv_bytes_full": price.kv_bytes_full,
            }
        )
    return rows
