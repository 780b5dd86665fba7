"""Families without an adapter of their own, where a model can be seen to be built as usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

import tokenreduce.engine.call as spelled
import tokenreduce.engine.probe as probe
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.evidence import DECODER
from tokenreduce.geometry import Picture
from tokenreduce.tower import Part

CROSS = ("cross_attention_layers", "cross_layer_interval", "cross_layers")
UNDERSTOOD = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "q_norm", "k_norm"})
"""Parts of an attention that it may have; any other (an indexer) may choose tokens by itself."""
PARTS = ("q_proj", "k_proj", "head_dim", "scaling")


@adapters.register("generic")
class Generic(Adapter):
    """Other families, where checks find an ordinary decoder after the usual merge of features.

    Where the tokens of a picture lie is not known, so that they are one row without boxes, and
    strategies that need a grid are refused.
    """

    evidence: ClassVar[frozenset[str]] = frozenset(DECODER)
    positions: ClassVar[frozenset[str]] = frozenset({"keep"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """One row per picture of the encoder's output, of which no place is claimed."""
        features = getattr(output, "pooler_output", output)
        rows = [Picture.grid(1, len(image)) for image in features]
        return [replace(row, box=torch.zeros_like(row.box)) for row in rows]

    def unsupported_reason(self, model: Part) -> str | None:
        """The first check that fails: how it merges, what its layers get, and what they make."""
        found = _merging(self, model)
        if found is None:
            decoder = self.decoder(model)
            found = _stack(decoder) or probe.trial(self, decoder)
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
        return "it has an encoder besides its decoder"
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
        children = {part for part, _ in layer.self_attn.named_children()}
        if odd := children - UNDERSTOOD:
            return f"{name} has a part of its attention that is not understood: {min(odd)}"
        if odd := spelled.parameters(layer.forward) - spelled.LAYER:
            return f"{name} takes {', '.join(sorted(odd))}"
    return None
