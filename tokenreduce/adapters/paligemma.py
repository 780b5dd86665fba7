"""PaliGemma and PaliGemma 2 (transformers `PaliGemmaForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.llava import clip_merging, clip_tower
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture
from tokenreduce.tower import Part, Tower


@adapters.register("paligemma")
class PaliGemma(Adapter):
    """PaliGemma 1 and 2: a square of patches per image, before all text; the prompt sees itself.

    PaliGemma 2 has a Gemma 2 decoder, whose attention caps its scores: eager alone.
    """

    families: ClassVar[frozenset[str]] = frozenset({"paligemma"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square per image, each token a patch."""
        found, first = [], 0
        for image in output.pooler_output:
            found.append(Picture.unknown(len(image)).of(first))
            first += len(image)
        return found

    def tower(self, base: Part) -> Tower | None:
        """SigLIP, to the last norm."""
        return clip_tower(base, normed=True)

    @override
    def merging(self, base: Part) -> frozenset[str]:
        return clip_merging(base)
