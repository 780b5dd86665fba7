"""Bare decoders, whose visual positions the caller marks (`reduction.visual(mask)`)."""

from __future__ import annotations

from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, adapters


@adapters.register("decoder")
class Decoder(Adapter):
    """Llama, Mistral, Qwen2 and Qwen3 causal language models without a vision tower."""

    families: ClassVar[frozenset[str]] = frozenset({"llama", "mistral", "qwen2", "qwen3"})
    encoders: ClassVar[tuple[str, ...]] = ()

    def visual_ids(self, config: Any) -> tuple[int, ...]:
        """No placeholder ids: only the caller knows which inputs are visual."""
        return ()
