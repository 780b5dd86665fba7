"""Bare decoders, whose visual positions the caller marks (`reduction.visual(mask)`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, adapters


@adapters.register("decoder")
class Decoder(Adapter):
    """Llama, Mistral, Qwen2 and Qwen3 causal language models without a vision tower."""

    families: ClassVar[frozenset[str]] = frozenset({"llama", "mistral", "qwen2", "qwen3"})
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def visual_ids(self, config: Any) -> dict[str, int]:
        """No placeholder ids: only the caller knows which inputs are visual."""
        return {}
