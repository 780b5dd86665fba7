"""How a vision tower is read: where its layers, projections and norms are.

Shapes: n pictures of the tower's batch, p tower tokens, h heads, e head width, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenreduce.registry import Registry

Rotary = tuple[Tensor, Tensor]
Part = Any
"""A module of the model; which attributes it has is what an adapter knows."""


@dataclass(frozen=True)
class Tower:
    """The facts of a vision tower; the methods' defaults hold for CLIP and SigLIP.

    A layer is pre-norm: `x + attention(norm(x))`, then `x + mlp(norm(x))`. A subclass states
    what differs.

    Attributes:
        layers: its layers, in order.
        feature: the layer whose output the projector gets.
        heads: attention heads.
        classes: class tokens before the patches (distillation and register tokens too).
        norm: the norm after the feature layer, where the projector gets what leaves it.
        readers: modules after layers that must get every place of a packed sequence.
        mask: the parameter of a layer's forward that is added to its attention scores.
        takes_mask: whether there is one.
    """

    layers: Sequence[Part]
    feature: int
    heads: int
    classes: int = 0
    norm: Part | None = None
    readers: Sequence[Part] = ()
    mask: ClassVar[str] = "attention_mask"
    takes_mask: ClassVar[bool] = True

    def attention(self, layer: Part) -> Part:
        """The attention of a layer."""
        return layer.self_attn

    def projections(self, layer: Part) -> tuple[Part, ...]:
        """The query and the key projection of a layer, or the one that projects both."""
        return layer.self_attn.q_proj, layer.self_attn.k_proj

    def split(self, *projected: Tensor) -> tuple[Tensor, Tensor]:
        """(n, p, d) queries and keys, from the output of `projections`; one may hold values too."""
        if len(projected) == 1:
            queries, keys, _ = projected[0].chunk(3, dim=-1)
        else:
            queries, keys = projected
        shape = (-1, *queries.shape[-2:])
        return queries.view(shape), keys.view(shape)

    def rotary(self, call: Mapping[str, Any]) -> Rotary | None:
        """Cos and sin (p, e) by which queries and keys are turned, from the attention's arguments.

        None where positions are added to the patches instead.
        """
        return None

    def turned(self, x: Tensor, rotary: Rotary) -> Tensor:
        """(n, h, p, e) queries or keys, turned by the halves of a head."""
        return rotate(x, rotary)

    def blocks(self, call: Mapping[str, Any]) -> list[int] | None:
        """How many patches in a row see each other, where all pictures are one sequence."""
        return None

    def scaling(self, width: int) -> float:
        """The factor on query-key products of heads `width` wide."""
        return float(width**-0.5)

    def key_module(self, layer: Part) -> Part:
        """The module whose output is the keys of a layer, in the form that `keys` reads."""
        return self.projections(layer)[1]

    def keys(self, output: Tensor) -> Tensor:
        """(n, h, p, e) the keys, from the output of `key_module` (n, p, h e)."""
        return output.view(*output.shape[:-1], self.heads, -1).transpose(1, 2)

    def entrance(self, layer: Part) -> Part:
        """The norm in front of a layer's attention, which gets the layer's input as it is."""
        return layer.layer_norm1

    def mlp(self, layer: Part) -> tuple[Part, ...]:
        """The norm in front of a layer's MLP, and the MLP: one module, or its parts in order.

        The norm gets the sum after the attention; what the last one gives is added to that sum.
        """
        return layer.layer_norm2, layer.mlp

    def adds_mask(self) -> bool:
        """Whether the attention that is in use can add a (n, 1, 1, p) mask to its scores."""
        if not self.takes_mask:
            return False
        config = self.attention(self.layers[0]).config
        return config._attn_implementation in ("sdpa", "eager")


class PackedTower(Tower):
    """A tower that is given the patches of all pictures as one sequence, and turns them."""

    def rotary(self, call: Mapping[str, Any]) -> Rotary | None:
        """The tables that the attention is given."""
        cos, sin = call["position_embeddings"]
        return cos.view(-1, cos.shape[-1]), sin.view(-1, sin.shape[-1])

    def blocks(self, call: Mapping[str, Any]) -> list[int] | None:
        """From cumulated lengths (sync: once per encoder call, as in the tower itself)."""
        found: list[int] = call["cu_seqlens"].diff().tolist()
        return found

    def bounds(self, call: Mapping[str, Any]) -> Tensor | None:
        """(n + 1,) cumulated lengths of what a layer's attention keeps apart; None: `blocks`."""
        found: Tensor = call["cu_seqlens"]
        return found

    def shorter(
        self, call: Mapping[str, Any], first: Tensor, bounds: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """What changes in a layer's arguments where the sequence has become shorter.

        Args:
            call: the arguments by name, for the whole sequence.
            first: (p,) the places of the whole sequence that are left.
            bounds: cumulated lengths of the shorter sequence, from those of the whole one.
        """
        cos, sin = (table.index_select(-2, first) for table in call["position_embeddings"])
        return {"position_embeddings": (cos, sin), "cu_seqlens": bounds(call["cu_seqlens"])}


class Encoder:
    """How a plain vision encoder is read: a model that is a tower and no decoder."""

    @staticmethod
    def reads(model: Part) -> bool:
        """Whether `model` is one of these."""
        raise NotImplementedError

    @staticmethod
    def tower(model: Part) -> Tower:
        """Its facts."""
        raise NotImplementedError


encoders: Registry[type[Encoder]] = Registry("encoder", "tokenreduce.adapters")
"""Every known kind of plain vision encoder: name -> class."""


def encoder_tower(model: Part) -> Tower | None:
    """The facts of a plain vision encoder; None for any other model."""
    for encoder in encoders.values():
        if encoder.reads(model):
            return encoder.tower(model)
    return None


def rotate(x: Tensor, rotary: Rotary, interleaved: bool = False) -> Tensor:
    """Rotary embedding of `x` (b, h, l, e) with cos and sin (b, l, e) (RoFormer).

    Args:
        x: queries or keys; where the tables are narrower than a head, the rest stays.
        rotary: cos and sin.
        interleaved: pairs are neighbours; else one of each half.
    """
    cos, sin = (table.unsqueeze(1).to(x.dtype) for table in rotary)
    x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    if interleaved:
        across = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    turned = x * cos + across * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
