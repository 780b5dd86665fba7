"""Gemma 3 (transformers `Gemma3ForConditionalGeneration`)."""

from __future__ import annotations

from typing import ClassVar

from tokenreduce.adapter import Adapter, Part, adapters


@adapters.register("gemma3")
class Gemma3(Adapter):
    """Gemma 3: a square of pooled patches per image; a pan-and-scan crop is an image of its own.

    The decoder has a rotary table for its sliding and one for its full layers, and the tokens of
    an image see each other in both directions. Which crop was cut out of which image is known to
    the processor alone: crops are counted like other images, after the one they belong to.
    """

    families: ClassVar[frozenset[str]] = frozenset({"gemma3"})

    def rotary_kind(self, layer: Part) -> str | None:
        """The layer's type, by which the decoder makes its tables."""
        kind: str = layer.self_attn.layer_type
        return kind
