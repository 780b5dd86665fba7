"""Gemma 3 (transformers `Gemma3ForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.llava import clip_merging, clip_tower
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture
from tokenreduce.tower import Part, Tower


@adapters.register("gemma3")
class Gemma3(Adapter):
    """Gemma 3: a square of pooled patches per image; a pan-and-scan crop is an image of its own.

    The decoder has a rotary table for its sliding and one for its full layers, and the tokens of
    an image see each other in both directions. Which crop was cut out of which image is known to
    the processor alone: crops are counted like other images, after the one they belong to.
    """

    families: ClassVar[frozenset[str]] = frozenset({"gemma3"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "multi_modal_projector.patches_per_image",
        "multi_modal_projector.kernel_size",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square per image, each token the mean of a square of patches."""
        side = base.multi_modal_projector.patches_per_image
        block = base.multi_modal_projector.kernel_size
        return [
            Picture.unknown(len(image)).over(side, side, block, i * side**2)
            for i, image in enumerate(output.pooler_output)
        ]

    def tower(self, base: Part) -> Tower | None:
        """SigLIP, to the last norm."""
        return clip_tower(base, normed=True)

    def merging(self, base: Part) -> frozenset[str]:
        """As many tokens as ever: each is the mean of patches that may be of several groups."""
        return clip_merging(base) & {"expanded"}

    def rotary_kind(self, layer: Part) -> str | None:
        """The layer's type, by which the decoder makes its tables."""
        kind: str = layer.self_attn.layer_type
        return kind
