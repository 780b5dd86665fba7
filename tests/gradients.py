"""Whether checkpointing activations changes gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from tokenreduce.testing.plain import checkpoint_activations

NON_REENTRANT = partial(checkpoint_activations, reentrant=False)


def checkpointing_changes_no_gradient(
    model: Any,
    backward: Callable[[], None],
    part: str,
    close: float,
    turn_on: Callable[[Any], Any] = NON_REENTRANT,
) -> None:
    """The gradients that `backward` leaves are the same with it.

    Some of the parameters with `part` in their names have gradients other than zero.
    """

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    turn_on(model)
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    assert any(part in name and grad.abs().max() > 0 for name, grad in plain.items())
    for name, grad in plain.items():
        assert (grad - checkpointed[name]).abs().max() < close
