"""LLaVA-1.5 (transformers `LlavaForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture
from tokenreduce.tower import PackedTower, Part, Tower


@adapters.register("llava")
class Llava(Adapter):
    """LLaVA-1.5: one square grid of patches per image; Pixtral towers have a grid per image."""

    families: ClassVar[frozenset[str]] = frozenset({"llava"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = ("config.vision_config.patch_size",)

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
        """CLIP, SigLIP or Pixtral."""
        return pixtral_tower(base) or clip_tower(base)

    def merging(self, base: Part) -> frozenset[str]:
        """All of it; with a class token in the language model, the expanded output alone."""
        packed = pixtral_tower(base) is not None
        return frozenset({"expanded", "merged"}) if packed else clip_merging(base)


class PixtralTower(PackedTower):
    """Pixtral's tower."""

    @override
    def attention(self, layer: Part) -> Part:
        return layer.attention

    def projections(self, layer: Part) -> tuple[Part, ...]:
        """Queries and keys."""
        return layer.attention.q_proj, layer.attention.k_proj

    def entrance(self, layer: Part) -> Part:
        """The norm in front of a layer's attention."""
        return layer.attention_norm

    def mlp(self, layer: Part) -> tuple[Part, Part]:
        """The norm in front of a layer's MLP, and the MLP."""
        return layer.ffn_norm, layer.feed_forward

    def blocks(self, call: Mapping[str, Any]) -> list[int] | None:
        """Patches of one picture see each other, by the mask (sync: once per encoder call)."""
        mask = call["attention_mask"]
        if mask is None:
            return None
        first = (mask[0, 0] >= 0).long().argmax(dim=-1)
        found: list[int] = torch.unique_consecutive(first, return_counts=True)[1].tolist()
        return found

    def bounds(self, call: Mapping[str, Any]) -> Tensor | None:
        """Of pictures: in every layer the same."""
        return None

    def shorter(
        self, call: Mapping[str, Any], first: Tensor, bounds: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """Tables, and rows and columns of the mask."""
        cos, sin = (table.index_select(-2, first) for table in call["position_embeddings"])
        mask = call["attention_mask"].index_select(-2, first).index_select(-1, first)
        return {"position_embeddings": (cos, sin), "attention_mask": mask}


def pixtral_tower(base: Part) -> Tower | None:
    """The facts of a Pixtral tower, None for another."""
    config = base.config.vision_config
    if config.model_type != "pixtral":
        return None
    layers = base.vision_tower.transformer.layers
    return PixtralTower(layers, feature_layer(base, len(layers)), config.num_attention_heads)


def feature_layer(base: Part, depth: int) -> int:
    """The layer whose output the projector gets, of a tower of so many."""
    chosen = getattr(base.config, "vision_feature_layer", -1)
    chosen = chosen[-1] if isinstance(chosen, (list, tuple)) else chosen
    return int(chosen if chosen >= 0 else depth + 1 + chosen) - 1


def clip_tower(base: Part, normed: bool = False) -> Tower | None:
    """The facts of a CLIP or SigLIP tower, None for another.

    Args:
        base: the multimodal module.
        normed: whether the projector gets what leaves the tower's last norm.
    """
    config, tower = base.config.vision_config, base.vision_tower
    if config.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return None
    inner = getattr(tower, "vision_model", tower)
    layers = inner.encoder.layers
    feature = feature_layer(base, len(layers))
    classes = int(config.model_type == "clip_vision_model")
    norm = inner.post_layernorm if normed else None
    return Tower(layers, feature, config.num_attention_heads, classes, norm)


def clip_merging(base: Part) -> frozenset[str]:
    """What the language model may get: a class token that it is given is no patch of a picture."""
    tower = clip_tower(base)
    if tower is None:
        return frozenset()
    shown = tower.classes and base.config.vision_feature_select_strategy != "default"
    return frozenset({"expanded"} if shown else {"expanded", "merged"})
