"""Families without an adapter of their own, where a model can be seen to be built as usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import tokenreduce.engine.call as spelled
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.geometry import Picture
from tokenreduce.tokens import DECODER
from tokenreduce.tower import Part, Rotary

FAILS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a layer of another build raises when it is tried; a warning made an error is not meant."""
CROSS = ("cross_attention_layers", "cross_layer_interval", "cross_layers")
PARTS = ("q_proj", "k_proj", "head_dim", "scaling")
TRIED = 3
"""Tokens of the trial run of a layer."""


@adapters.register("generic")
class Generic(Adapter):
    """Other families, where checks find an ordinary decoder behind the usual merge of features.

    Where the tokens of a picture stand is not known, so that they are one row without boxes, and
    strategies that need a grid are refused.
    """

    evidence: ClassVar[frozenset[str]] = frozenset(DECODER)
    positions: ClassVar[frozenset[str]] = frozenset({"keep"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """One row per picture of the encoder's output, of which no place is claimed."""
        features = getattr(output, "pooler_output", output)
        rows = [Picture.grid(1, len(image)) for image in features]
        return [replace(row, box=torch.zeros_like(row.box)) for row in rows]

    def unfit(self, model: Part) -> str | None:
        """The first check that fails: how it merges, what its layers get, and what they make."""
        found = _merging(self, model)
        if found is None:
            decoder = self.decoder(model)
            found = _stack(decoder) or _trial(self, decoder)
        return found


def _merging(adapter: Adapter, model: Part) -> str | None:
    """Why pictures do not become tokens of a decoder's sequence, marked by placeholders."""
    if not hasattr(getattr(model, "config", None), "get_text_config"):
        return "its config is not one of transformers"
    configs = (model.config, model.config.get_text_config())
    if any(getattr(config, name, None) for config in configs for name in CROSS):
        return (
            "its decoder reads pictures through cross-attention, so that there are no visual "
            "tokens in the sequence to leave out"
        )
    if model.config.is_encoder_decoder or configs[1].is_encoder_decoder:
        return "it has an encoder beside its decoder"
    try:
        adapter.decoder(model)
    except (AttributeError, ValueError):
        return "its get_decoder() gives nothing that has `layers`"
    base = adapter.base(model)
    if not adapter.visual_ids(base.config):
        return "its config has no `image_token_id`"
    if not any(hasattr(base, name) for name in adapter.encoders):
        return f"{type(base).__name__} has none of the methods {', '.join(adapter.encoders)}"
    return None


def _stack(decoder: Part) -> str | None:
    """Why the decoder or its layers are not of the usual build."""
    name = type(decoder).__name__
    if "mrope_section" in (getattr(decoder.config, "rope_parameters", None) or {}):
        return f"positions in {name} have several axes (mrope_section)"
    if odd := spelled.parameters(decoder.forward) - spelled.DECODER:
        return f"its decoder, {name}, takes {', '.join(sorted(odd))}"
    for i, layer in enumerate(decoder.layers):
        name = f"{type(layer).__name__} (layer {i})"
        if not hasattr(layer, "input_layernorm"):
            return f"{name} has no input_layernorm"
        attention = getattr(layer, "self_attn", None)
        if lacking := [part for part in PARTS if not hasattr(attention, part)]:
            return f"{name} has no self_attn.{lacking[0]}"
        if odd := spelled.parameters(layer.forward) - spelled.LAYER:
            return f"{name} takes {', '.join(sorted(odd))}"
    return None


def _trial(adapter: Adapter, decoder: Part) -> str | None:
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
        args, kwargs = spelled.layer_call(layer, hidden, rotary, at, notes).write()
        layer(*args, **kwargs)
    except _Written:
        return notes.keys
    except FAILS:
        return None
    finally:
        if checkpointing:
            layer.gradient_checkpointing = True
    return None
