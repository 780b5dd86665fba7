"""A strategy on a GPU that is not there: tokens with shapes, types and a device, without values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from tokenreduce.strategy import Strategy
from tokenreduce.tokens import Tokens


def plan_without_values(
    strategy: Strategy, tokens: Tokens, budget: Sequence[int], on_cpu: bool = False
) -> None:
    """Asks for a plan of tokens that have no values, on a GPU.

    With `on_cpu` on a CPU, and of tokens that have some before: a learned strategy has parameters
    there, which it builds when it is first used.

    Raises:
        AssertionError: a tensor is asked for its values, or made on another device.
    """
    device = torch.device("cpu" if on_cpu else "cuda")
    if on_cpu:
        strategy.plan(tokens, budget)
    with FakeTensorMode(allow_non_fake_inputs=on_cpu):
        try:
            plan = strategy.plan(hollow(tokens, device), budget)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise AssertionError(
                f"{strategy} asks a tensor for its values ({error}), where a GPU waits for all "
                "earlier work: counts are Python numbers in tokens.counts and budget"
            ) from error
        except RuntimeError as error:
            if "device" not in str(error):
                raise
            raise AssertionError(
                f"{strategy} mixes tensors of two devices: make new ones with "
                f"device=tokens.hidden.device ({str(error).splitlines()[0]})"
            ) from error
    assert plan.keep.device.type == device.type, (
        f"{strategy} gives a plan on {plan.keep.device} for tokens on {device}: make new tensors "
        "with device=tokens.hidden.device"
    )


def hollow(tokens: Tokens, device: torch.device) -> Tokens:
    """The same shapes and types on a device; within torch's mode of tensors without values."""

    def empty(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=device)

    def measured(make: Callable[[], Tensor]) -> Tensor:
        return empty(make())

    parts = {f.name: getattr(tokens.places, f.name) for f in fields(tokens.places)}
    where = {name: empty(x) for name, x in parts.items() if isinstance(x, Tensor)}
    return replace(
        tokens,
        hidden=empty(tokens.hidden),
        valid=empty(tokens.valid),
        origin=empty(tokens.origin),
        places=replace(tokens.places, **where),
        evidence={name: partial(measured, make) for name, make in tokens.evidence.items()},
    )
