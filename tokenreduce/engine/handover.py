"""Gives a layer what a score has already computed for it."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn

from tokenreduce.engine.hooks import Hook


class Handover:
    """Gives a layer the key projections that a score has made, in place of its own.

    The layer would project the tokens that stay a second time. Its projection is called with no
    rows, and what it returns is replaced; both hooks leave with that call, or with the pass.
    """

    def __init__(self, projection: nn.Module, keys: Tensor) -> None:
        owner = threading.get_ident()

        def skip(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
            return (args[0][:, :0],) if threading.get_ident() == owner else None

        def give(_: nn.Module, __: Any, ___: Tensor) -> Tensor | None:
            if threading.get_ident() != owner:
                return None
            self.close()
            return keys

        before, after = Hook(skip), Hook(give)
        self.handles: list[Any] = [
            projection.register_forward_pre_hook(before),
            projection.register_forward_hook(after),
        ]

    def close(self) -> None:
        """Leaves the projection to itself."""
        for handle in self.handles:
            handle.remove()

    @staticmethod
    def fits(projection: nn.Module) -> bool:
        """Whether nobody could miss the call: a plain matrix that nobody else watches."""
        watched = projection._forward_pre_hooks or projection._forward_hooks
        return type(projection) is nn.Linear and not watched
