"""A schedule and what it costs, as plain data: the numbers of `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreduce.cost import (
    CONVENTIONS,
    Cost,
    DecoderShape,
    Grid,
    ModelCost,
    activations,
    average_tokens,
    cost,
    model_cost,
    shape_of,
)
from tokenreduce.scheduler import Scheduler, schedulers


def summary(
    sizes: Any,
    scheduler: Scheduler,
    visual: int,
    text: int,
    pictures: int | Sequence[Grid],
    *,
    convention: str = "matmul",
    width: float = 2,
) -> dict[str, Any]:
    """A schedule and what it costs, as plain data.

    The vision tower is left out where its sizes are not known, or where its pictures are
    not given.

    Args:
        sizes: a transformers configuration.
        scheduler: the schedule.
        visual: visual tokens of a prompt.
        text: its other tokens.
        pictures: what the vision tower is given: how many, or their patches.
        convention: of FLOPs.
        width: bytes of a number.
    """
    shape = shape_of(sizes)
    made = scheduler.stops(shape.layers)
    price = cost(shape, made, visual, text, convention, width)
    unknown, whole_model = None, None
    try:
        whole_model = model_cost(
            sizes,
            made,
            pictures,
            visual,
            text,
            convention=convention,
            bytes_per_value=width,
        )
    except ValueError as error:
        unknown = str(error)
    return {
        "scheduler": schedulers.node(scheduler),
        "stops": [[stop.layer, stop.keep, stop.count(visual)] for stop in made],
        "visual": visual,
        "text": text,
        "stages": stages(price.tokens_per_layer, text),
        "average_tokens": average_tokens(made, shape.layers, visual),
        "flops_share": price.share,
        "kv_share": price.kv_bytes / price.kv_bytes_full,
        "model_share": None if whole_model is None else whole_model.share,
        "flops": _flops(price, whole_model),
        "bytes": _bytes(shape, price, visual + text, whole_model, width),
        "tower_unknown": unknown,
    }


def stages(tokens: Sequence[int], text: int) -> list[dict[str, Any]]:
    """Runs of layers that work on the same number of visual tokens."""
    found: list[dict[str, Any]] = []
    for layer, n in enumerate(tokens):
        if found and found[-1]["visual"] == n - text:
            found[-1]["layers"][1] = layer
        else:
            found.append({"layers": [layer, layer], "visual": n - text})
    return found


def _flops(price: Cost, whole_model: ModelCost | None) -> list[list[Any]]:
    """Rows of a table: name, unreduced, reduced."""
    if whole_model is None:
        per_mac = CONVENTIONS[price.convention].flops_per_mac
        rows = [
            ("decoder layers", price.flops_full, price.flops),
            ("token selection, at most", 0, per_mac * price.selection_macs),
        ]
    else:
        rows = whole_model.rows()
        rows.append(("whole model", whole_model.flops_full, whole_model.flops))
    return [list(row) for row in rows]


def _bytes(
    shape: DecoderShape, price: Cost, full: int, whole_model: ModelCost | None, width: float
) -> list[list[Any]]:
    """The same of bytes: the cache, and the activations of a prefill and of training."""
    if whole_model is None:
        before = activations(shape, (full,) * shape.layers, width)
        after = activations(shape, price.tokens_per_layer, width)
    else:
        before, after = whole_model.activations_full, whole_model.activations
    return [
        ["KV cache", price.kv_bytes_full, price.kv_bytes],
        ["activations of a prefill", before.prefill, after.prefill],
        ["activations kept in training", before.stored, after.stored],
        ["the same, checkpointed", before.checkpointed, after.checkpointed],
    ]
