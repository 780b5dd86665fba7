"""The masked reference inside a trainer: the same script, an untouched model, the same tokens gone.

A run under a reduction is recorded; the same run on an untouched model then hides the recorded
tokens from every query, and lets the last token that is left stand for what follows it. Whatever
the trainer makes of it (loss, metrics, gradients, weights) must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.testing.batches import Sample, assemble, batch
from tokenreduce.testing.models import FAMILIES, IMAGE, VIDEO
from tokenreduce.testing.oracle import Kept, decoder_of, filled, left, masked

SCHEDULE = tr.Explicit(layers=(2, 4), keeps=(0.5, 0.2))
MIXED = (1, 0, 2, 1)
"""Pictures of the samples of a batch: text alone, one, several; answers of unequal lengths."""


def samples(name: str, images: tuple[int, ...] = MIXED, seed: int = 0) -> list[Sample]:
    """A family's samples before padding, as a data set holds them."""
    return list(batch(FAMILIES[name], images, seed=seed).samples)


def collator(name: str) -> Any:
    """Samples -> a padded batch with labels."""

    def collate(rows: list[Sample]) -> dict[str, Tensor]:
        made = assemble(FAMILIES[name], tuple(rows), "right")
        return made.inputs | {"labels": made.labels}

    return collate


def placeholders(ids: Tensor) -> Tensor:
    """(b, l) True at visual tokens."""
    return (ids == IMAGE) | (ids == VIDEO)


@contextmanager
def recorded(model: Any, reduction: tr.Reduction) -> Iterator[list[Kept]]:
    """What is kept in every call of the model inside the block."""
    found: list[Kept] = []

    def note(*_: Any) -> None:
        found.append(reduction.kept if any(reduction.report.applied) else {})

    handle = model.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def replayed(model: Any, record: list[Kept]) -> Iterator[None]:
    """Call by call, an untouched model becomes the masked reference of a record.

    All of the record must be used up in the block.
    """
    waiting, stack = list(record), ExitStack()

    def begin(_: Any, args: Any, given: dict[str, Any]) -> None:
        kept = waiting.pop(0)
        if not kept:
            return
        visual = placeholders(given["input_ids"])
        there = left(visual, given["attention_mask"].bool(), kept)

        def fill(_: Any, __: Any, output: Any) -> Any:
            hidden, seen = filled(output.last_hidden_state, there)
            output.last_hidden_state = hidden * seen[..., None]
            return output

        stack.enter_context(masked(model, visual, kept))
        stack.callback(decoder_of(model).register_forward_hook(fill).remove)

    def end(*_: Any) -> None:
        stack.close()

    before = model.register_forward_pre_hook(begin, with_kwargs=True)
    after = model.register_forward_hook(end, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
    assert not waiting, f"{len(waiting)} recorded calls were never made"


def gradients(model: Any) -> dict[str, Tensor]:
    """A copy of every gradient, by the parameter's name."""
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], share: float = 2e-4) -> None:
    """Equal up to rounding; what is zero but for rounding is measured against the largest."""
    assert ours.keys() == theirs.keys()
    assert ours
    largest = max(x.abs().max() for x in theirs.values())
    assert largest > 0
    for name, their in theirs.items():
        scale = max(their.abs().max(), 1e-3 * largest)
        off = (ours[name] - their).abs().max() / scale
        assert off < share, f"{name}: {off:.2e}"


def assert_close(ours: Any, theirs: Any) -> None:
    """Losses in fp32 over sums of another order."""
    torch.testing.assert_close(
        torch.as_tensor(ours), torch.as_tensor(theirs), atol=2e-6, rtol=1e-5, check_dtype=False
    )
