"""Bytes: the most that a pass holds at once, and what a KV cache holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """The most bytes that `call` holds at once beyond what is held when it begins.

    On a GPU what the caching allocator has given out (`torch.cuda.max_memory_allocated`). On a CPU
    every allocation and release of torch's allocator, kernels' scratch space included, as torch's
    profiler lists them. None on other devices. Weights and inputs are held before, and not counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library talks on stderr
    with _without_notes(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events: Any = profile.kineto_results
    moves = [(e.start_ns(), e.nbytes()) for e in events.events() if e.name() == "[memory]"]
    held = most = 0
    for _, n in sorted(moves, key=lambda move: move[0]):
        held += n
        most = max(most, held)
    return most


@contextmanager
def _without_notes() -> Iterator[None]:
    """Without torch's note that memory is freed which was taken before the profiler began.

    It is written by C++, past Python's warnings, once a process; errors are still raised.
    """
    sys.stderr.flush()
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a transformers cache really holds, each storage once."""
    return storages(
        x
        for layer in cache.layers
        for x in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(x, Tensor)
    )


def storages(tensors: Iterable[Tensor]) -> int:
    """Bytes that the tensors use, shared ones once, and of a view all that it keeps alive."""
    found = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(found.values())
