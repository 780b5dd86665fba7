"""What a computation holds: the largest tensor that it makes, and fewer pairs at once.

Shapes: v visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenreduce import selection


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes, inside the block, the largest tensor that an operation returns.

    Attributes:
        nbytes: of its storage: a view counts as what it is a view of.
        what: the operation, and the tensor's shape and type.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes, self.what = 0, "nothing"

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of every operation."""
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() > self.nbytes:
                self.nbytes = x.untyped_storage().nbytes()
                self.what = f"{func} gives {tuple(x.shape)} of {x.dtype}"
        return found


@contextmanager
def few_pairs(v: int) -> Iterator[None]:
    """Inside the block every pair of no more than `v` tokens is held at once (`DENSE`)."""
    usual, selection.DENSE = selection.DENSE, v
    try:
        yield
    finally:
        selection.DENSE = usual


def largest(compute: Callable[[], Any]) -> Largest:
    """The largest tensor that `compute` makes on its way."""
    found = Largest()
    with torch.no_grad(), found:
        compute()
    return found
