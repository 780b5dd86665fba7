"""timm's VisionTransformer. timm itself is never imported: a model of it says what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokenreduce.errors import BadOption, Incompatible
from tokenreduce.tower import Encoder, Part, Tower, encoders


@dataclass(frozen=True)
class TimmTower(Tower):
    """One matrix projects queries, keys and values; the norm of keys (or nothing) follows it."""

    mask: ClassVar[str] = "attn_mask"

    def projections(self, layer: Part) -> tuple[Part, Part]:
        """There are none to name.

        Raises:
            TypeError: always; queries, keys and values come from one matrix.
        """
        raise Incompatible("timm projects queries and keys by one matrix")

    def key_module(self, layer: Part) -> Part:
        """The norm of the keys, an identity in most models."""
        return layer.attn.k_norm

    def keys(self, output: Tensor) -> Tensor:
        """(n, h, p, e) as they are."""
        return output

    def entrance(self, layer: Part) -> Part:
        """The norm in front of a block's attention."""
        return layer.norm1

    def mlp(self, layer: Part) -> tuple[Part, Part]:
        """The norm in front of a block's MLP, and the MLP."""
        return layer.norm2, layer.mlp

    def adds_mask(self) -> bool:
        """Blocks take a mask, fused or not."""
        return True


@encoders.register("timm")
class TimmViT(Encoder):
    """timm's VisionTransformer with its usual blocks (`vit_*`, `deit_*`)."""

    @staticmethod
    def reads(model: Part) -> bool:
        """By the names of its classes and the module that defines them."""
        return any(
            kind.__module__ == "timm.models.vision_transformer"
            and kind.__name__ == "VisionTransformer"
            for kind in type(model).__mro__
        )

    @staticmethod
    def tower(model: Part) -> Tower:
        """All prefix tokens are class tokens: class, distillation, registers.

        Raises:
            ValueError: blocks whose attention and MLP do not follow each other.
        """
        odd = {type(x).__name__ for x in model.blocks} | {
            type(x.attn).__name__ for x in model.blocks if hasattr(x, "attn")
        }
        if odd != {"Block", "Attention"}:
            raise BadOption(
                f"this VisionTransformer has {', '.join(sorted(odd))}, where tokens can be merged "
                "only in blocks of attention and MLP (Block with Attention)"
            )
        heads = model.blocks[0].attn.num_heads
        return TimmTower(model.blocks, len(model.blocks) - 1, heads, model.num_prefix_tokens)
