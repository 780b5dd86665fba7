"""PaliGemma and PaliGemma 2 (transformers `PaliGemmaForConditionalGeneration`)."""

from __future__ import annotations

from typing import ClassVar

from tokenreduce.adapter import Adapter, adapters


@adapters.register("paligemma")
class PaliGemma(Adapter):
    """PaliGemma 1 and 2: a square of patches per image, before all text; the prompt sees itself.

    PaliGemma 2 has a Gemma 2 decoder, whose attention caps its scores: eager alone.
    """

    families: ClassVar[frozenset[str]] = frozenset({"paligemma"})
