"""A strategy on a GPU that is not there: tokens with shapes, types and a device, without values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenreduce.strategy import Strategy
from tokenreduce.tokens import Tokens


def plan_without_values(
    strategy: Strategy, tokens: Tokens, budget: Sequence[int], on_cpu: bool = False
) -> None:
    """Asks for a plan of tokens that have no values, on a GPU.

    With `on_cpu` on a CPU, and of tokens that have some before: a learned strategy has parameters
    there, which it builds when it is first used.

    Raises:
        AssertionError: a tensor is asked for its values, copied to another device, or made there.
    """
    device = torch.device("cpu" if on_cpu else "cuda")
    if on_cpu:
        strategy.plan(tokens, budget)
    with FakeTensorMode(allow_non_fake_inputs=on_cpu), Stays(device):
        try:
            plan = strategy.plan(hollow(tokens, device), budget)
        except (DataDependentOutputException, DynamicOutputShapeException, Moved) as error:
            raise AssertionError(_asks(strategy, str(error))) from error
        except RuntimeError as error:
            if ".numpy()" in str(error):
                raise AssertionError(_asks(strategy, ".numpy()")) from error
            if "device" not in str(error):
                raise
            raise AssertionError(
                f"{strategy} mixes tensors of two devices: make new ones with "
                f"device=tokens.hidden.device ({str(error).splitlines()[0]})"
            ) from error
    for name, x in _tensors(plan):
        assert x.device.type == device.type, (
            f"{strategy} gives a plan on {x.device} for tokens on {device} (`{name}`): make "
            "new tensors with device=tokens.hidden.device"
        )


def _tensors(record: Any, within: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a record and of the records in it, by its dotted name."""
    for one in fields(record):
        x, name = getattr(record, one.name), f"{within}{one.name}"
        if isinstance(x, Tensor):
            yield name, x
        elif is_dataclass(x):
            yield from _tensors(x, f"{name}.")


def _asks(strategy: Strategy, how: str) -> str:
    return (
        f"{strategy} asks a tensor for its values ({how}), where a GPU waits for all earlier work: "
        "counts are Python numbers in tokens.counts and budget"
    )


class Moved(Exception):
    """A tensor was copied to another device."""


class Stays(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block no operation may take a tensor from `device` to another.

    Raises:
        Moved: one does; `.cpu()` and `.to("cpu")` wait for the values as `.item()` does.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of every operation."""
        found = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.device.type == self.device.type for x in given):
            for x in tree_leaves(found):
                if isinstance(x, Tensor) and x.device.type != self.device.type:
                    raise Moved(f"{func} copies {tuple(x.shape)} to {x.device}")
        return found


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
