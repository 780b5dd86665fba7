"""Plain vision encoders of transformers: CLIP, SigLIP, ViT, DeiT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tokenreduce.tower import Encoder, Part, Tower, encoders


@encoders.register("clip")
class ClipVision(Encoder):
    """CLIP's and SigLIP's vision models, by themselves, with a head, or with their text model."""

    @override
    @staticmethod
    def reads(model: Part) -> bool:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        return kind in ("clip", "clip_vision_model", "siglip", "siglip_vision_model") and (
            hasattr(getattr(model, "vision_model", model), "encoder")
        )

    @staticmethod
    def tower(model: Part) -> Tower:
        """A class token for CLIP, none for SigLIP."""
        inner: Part = getattr(model, "vision_model", model)
        layers, config = inner.encoder.layers, inner.config
        classes = int(config.model_type == "clip_vision_model")
        return Tower(layers, len(layers) - 1, config.num_attention_heads, classes)


@dataclass(frozen=True)
class ViTTower(Tower):
    """A layer of ViT: other names, the same order."""

    @override
    def attention(self, layer: Part) -> Part:
        return layer.attention

    def projections(self, layer: Part) -> tuple[Part, Part]:
        """The query and the key projection of a layer."""
        return layer.attention.q_proj, layer.attention.k_proj

    def entrance(self, layer: Part) -> Part:
        """The norm in front of a layer's attention."""
        return layer.layernorm_before

    def mlp(self, layer: Part) -> tuple[Part, Part]:
        """The norm in front of a layer's MLP, and the MLP."""
        return layer.layernorm_after, layer.mlp


class NestedViTTower(ViTTower):
    """A layer of ViT up to transformers 5.8: the attention one module deeper, the MLP in two.

    Its attention is always given None for a mask, so that a mask in the call would be a second one.
    """

    takes_mask: ClassVar[bool] = False

    def attention(self, layer: Part) -> Part:
        """The part that has the projections; what mixes the heads is next to it."""
        return layer.attention.attention

    def projections(self, layer: Part) -> tuple[Part, Part]:
        """The query and the key projection of a layer."""
        return layer.attention.attention.query, layer.attention.attention.key

    def mlp(self, layer: Part) -> tuple[Part, ...]:
        """The norm, and the parts of the MLP: the module of the last two adds the sum itself."""
        return layer.layernorm_after, layer.intermediate, layer.output.dense, layer.output.dropout


@encoders.register("vit")
class ViT(Encoder):
    """ViT and DeiT, with or without a head."""

    @override
    @staticmethod
    def reads(model: Part) -> bool:
        return getattr(getattr(model, "config", None), "model_type", None) in ("vit", "deit")

    @staticmethod
    def tower(model: Part) -> Tower:
        """One class token; DeiT has a distillation token after it."""
        kind = model.config.model_type
        inner: Part = getattr(model, kind, model)
        nested = not hasattr(inner, "layers")
        layers = inner.encoder.layer if nested else inner.layers
        form = NestedViTTower if nested else ViTTower
        classes = 2 if kind == "deit" else 1
        return form(layers, len(layers) - 1, model.config.num_attention_heads, classes)
