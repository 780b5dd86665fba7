"""Small vision encoders for tests, made by their own libraries; timm is imported when asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SIDE, PATCH = 32, 4
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
KINDS = ("clip", "clip_projected", "clip_both", "siglip", "vit", "deit", "timm", "timm_distilled")
"""Every kind of encoder that `encoder` makes; 64 patches each."""
SCORING = ("q_proj.w", "k_proj.w", "qkv.w", "query.w", "key.w")
"""Weights of queries and keys; ViT's have the last two names up to transformers 5.8."""


def encoder(kind: str, seed: int = 0, attention: str = "sdpa") -> nn.Module:
    """A plain vision encoder with random weights, in fp32 and evaluation mode."""
    import transformers as hf

    torch.manual_seed(seed)
    model: Any
    if kind.startswith("timm"):
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer

        form = VisionTransformerDistilled if kind == "timm_distilled" else VisionTransformer
        model = form(
            img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=4, num_heads=4, num_classes=10
        )
    elif kind == "siglip":
        model = hf.SiglipVisionModel._from_config(
            hf.SiglipVisionConfig(**SMALL), attn_implementation=attention
        )
    elif kind in ("vit", "deit"):
        config: Any = {"vit": hf.ViTConfig, "deit": hf.DeiTConfig}[kind](**SMALL, num_labels=10)
        form = {
            "vit": hf.ViTForImageClassification,
            "deit": hf.DeiTForImageClassificationWithTeacher,
        }[kind]
        model = form._from_config(config, attn_implementation=attention)
    elif kind == "clip_both":
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        config = hf.CLIPConfig(
            text_config={**text, "num_attention_heads": 4, "vocab_size": 99},
            vision_config=SMALL,
        )
        model = hf.CLIPModel._from_config(config, attn_implementation=attention)
    else:
        form = hf.CLIPVisionModelWithProjection if kind == "clip_projected" else hf.CLIPVisionModel
        model = form._from_config(hf.CLIPVisionConfig(**SMALL), attn_implementation=attention)
    with torch.no_grad():  # attention of random weights is flat; a merge should depend on it
        for name, value in model.named_parameters():
            if any(part in name for part in SCORING):
                value.mul_(3)
    return model.eval()  # type: ignore[no-any-return]


def from_transformers(model: Any) -> nn.Module:
    """A timm VisionTransformer with the weights of a transformers `ViTForImageClassification`."""
    from timm.models.vision_transformer import VisionTransformer

    config = model.config
    twin = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        num_classes=config.num_labels,
        norm_layer=lambda width, **rest: nn.LayerNorm(width, eps=config.layer_norm_eps, **rest),
    )
    inner, pairs = model.vit, {}
    parts = inner.embeddings
    pairs["patch_embed.proj"] = parts.patch_embeddings.projection
    pairs |= {"norm": inner.layernorm, "head": model.classifier}
    found = {"cls_token": parts.cls_token, "pos_embed": parts.position_embeddings}
    for i, layer in enumerate(inner.layers if hasattr(inner, "layers") else inner.encoder.layer):
        at = f"blocks.{i}."
        pairs |= {at + "norm1": layer.layernorm_before, at + "norm2": layer.layernorm_after}
        three, rest = _linear(layer)
        pairs |= {f"{at}{name}": module for name, module in rest.items()}
        for kind in ("weight", "bias"):
            found[f"{at}attn.qkv.{kind}"] = torch.cat([getattr(x, kind) for x in three])
    for name, module in pairs.items():
        found |= {f"{name}.{kind}": value for kind, value in module.named_parameters()}
    twin.load_state_dict({name: value.detach() for name, value in found.items()})
    return twin.eval()  # type: ignore[no-any-return]


def _linear(layer: Any) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Queries, keys and values of a layer of ViT, and its other matrices by timm's names."""
    outer = layer.attention
    if hasattr(layer, "mlp"):
        three, out = (outer.q_proj, outer.k_proj, outer.v_proj), outer.o_proj
        mlp = (layer.mlp.fc1, layer.mlp.fc2)
    else:  # transformers up to 5.8
        inner, out = outer.attention, outer.output.dense
        three = (inner.query, inner.key, inner.value)
        mlp = (layer.intermediate.dense, layer.output.dense)
    return three, {"attn.proj": out, "mlp.fc1": mlp[0], "mlp.fc2": mlp[1]}
