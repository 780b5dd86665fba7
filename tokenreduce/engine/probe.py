"""Whether an adapter reads a decoder's layers rightly: its keys against theirs, on noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenreduce.adapter import Adapter
from tokenreduce.engine.call import layer_call
from tokenreduce.tower import Part, Rotary

FAILS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a module of another build raises when it is tried; a warning made an error is not meant."""
TRIED = 3
"""Tokens of the trial run of a layer."""


def trial(adapter: Adapter, decoder: Part) -> str | None:
    """Why the keys of a layer are not what the adapter makes of its weights, tried on noise."""
    parameters = decoder.layers[0].parameters()
    weight = next(p for p in parameters if p.is_floating_point())  # quantised ones are bytes
    if weight.is_meta or hasattr(weight, "device_mesh"):
        return None  # its numbers are elsewhere; a sharded layer only runs inside its model
    noise = torch.randn(1, TRIED, decoder.config.hidden_size, generator=torch.Generator())
    hidden, at = noise.to(weight), torch.arange(TRIED, device=weight.device)[None]
    with torch.no_grad():
        try:
            tables = decoder.rotary_emb(hidden, at)
            cos, sin = tables
        except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
            return f"{type(decoder).__name__} has no `rotary_emb` that makes one cos and one sin"
        if cos.dim() != 3 or cos.shape != sin.shape or cos.shape[1] != TRIED:
            return f"the rotary tables of {type(decoder).__name__} are not (samples, tokens, width)"
        for i, layer in enumerate(decoder.layers):
            theirs = _keys(layer, hidden, (cos, sin), at)
            mine = adapter.keys(layer, hidden, (cos, sin)) if theirs is not None else None
            if theirs is None or mine is None or not _equal(mine, theirs):
                return (
                    f"{type(layer).__name__} (layer {i}) makes other keys than q_proj, k_proj and "
                    "a rotary embedding by halves"
                )
    return None


def _equal(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape != theirs.shape:
        return False
    off = (mine.float() - theirs.float()).abs().max()
    return bool(off <= torch.finfo(mine.dtype).eps ** 0.5 * theirs.float().abs().max())


class _Written(Exception):
    """Ends a layer's trial as soon as its keys are there."""


class _Notes:
    """In place of a cache: takes the keys that a layer wants to store, and stops it."""

    keys: Tensor | None = None

    def update(self, keys: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.keys = keys
        raise _Written

    def get_seq_length(self, *args: Any) -> int:
        """Nothing is cached."""
        return 0


def _keys(layer: Part, hidden: Tensor, rotary: Rotary, at: Tensor) -> Tensor | None:
    """The rotated keys that a layer hands to its cache; None where it does not get that far."""
    notes, checkpointing = _Notes(), getattr(layer, "gradient_checkpointing", False)
    if checkpointing:  # which takes the cache away
        layer.gradient_checkpointing = False
    try:
        args, kwargs = layer_call(layer, hidden, rotary, at, notes).write()
        layer(*args, **kwargs)
    except _Written:
        return notes.keys
    except FAILS:
        return None
    finally:
        if checkpointing:
            layer.gradient_checkpointing = True
    return None
