"""What autograd keeps for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def stored_bytes(forward: Callable[[], Any]) -> int:
    """Bytes of activations that autograd keeps for backward, weights left out, each storage once.

    forward: returns the loss.
    """
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not (x.is_leaf and x.requires_grad):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = forward()
    del loss
    return sum(seen.values())
