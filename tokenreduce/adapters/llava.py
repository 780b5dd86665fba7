"""LLaVA-1.5 (transformers `LlavaForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, ClassVar

from tokenreduce.adapter import Adapter, Part, Tower, adapters
from tokenreduce.geometry import Picture
from tokenreduce.tokens import TOWER


@adapters.register("llava")
class Llava(Adapter):
    """LLaVA-1.5: one square grid of patches per image; Pixtral towers have a grid per image."""

    families: ClassVar[frozenset[str]] = frozenset({"llava"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A grid per image; Pixtral's from `image_sizes` in pixels, CLIP's a square."""
        patch = base.config.vision_config.patch_size
        sizes = call.get("image_sizes")
        found = []
        for i, image in enumerate(output.pooler_output):
            if sizes is not None:
                height, width = (int(side) // patch for side in sizes[i])
                if height * width == len(image):
                    found.append(Picture.grid(height, width))
                    continue
            found.append(Picture.unknown(len(image)))
        counts = [0, *accumulate(map(len, found))]
        return [picture.of(first) for picture, first in zip(found, counts, strict=False)]

    def tower(self, base: Part) -> Tower | None:
        """CLIP or SigLIP; a Pixtral tower, whose rotary embedding would be missed, has none."""
        return clip_tower(base)

    def merging(self, base: Part) -> frozenset[str]:
        """All of it, where the tower is CLIP or SigLIP."""
        return clip_merging(base)


def clip_tower(base: Part) -> Tower | None:
    """The facts of a CLIP or SigLIP tower, None for another."""
    config, tower = base.config.vision_config, base.vision_tower
    if config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return None
    inner = getattr(tower, "vision_model", tower)
    layers, chosen = inner.encoder.layers, getattr(base.config, "vision_feature_layer", -1)
    chosen = chosen[-1] if isinstance(chosen, (list, tuple)) else chosen
    feature = (chosen if chosen >= 0 else len(layers) + 1 + chosen) - 1
    classes = int(config.model_type == "clip_vision_model")
    return Tower(layers, feature, config.num_attention_heads, classes)


def clip_merging(base: Part) -> frozenset[str]:
    """What the language model may get: a class token that it is given is no patch of a picture."""
    tower = clip_tower(base)
    if tower is None:
        return frozenset()
    shown = tower.classes and base.config.vision_feature_select_strategy != "default"
    return frozenset({"spread"} if shown else {"spread", "merged"})
