"""How a model family is read: the only code that knows a family's layout.

An adapter states facts: where the decoder layers are, which placeholder ids are visual, where the
tokens of an image are in it, and how a layer's queries and keys are made. The defaults hold for
LLaMA-like decoders after transformers' usual multimodal merge; a family's file says what differs.

Shapes: b samples, l sequence, r query rows, d width, h heads, e head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tokenreduce.errors import BadOption, read_renamed, take_renamed
from tokenreduce.evidence import DECODER, kind_of, layer_of, of_tower
from tokenreduce.geometry import WHOLE, Box, Picture
from tokenreduce.registry import Registry
from tokenreduce.tower import Part, Rotary, Tower, rotate

IMAGE, VIDEO = "image", "video"
"""The kinds of pictures, each with placeholders of its own."""
EARLIER = {
    "between": "feature_injections",
    "lacks": "missing_evidence",
    "unfit": "unsupported_reason",
}
"""Members of an `Adapter` under their names of version 0.1, which still work with a warning."""


class Adapter:
    """A model family with a LLaMA-like decoder; subclasses state what is different.

    * `families`: the `config.model_type` names that the adapter reads.
    * `evidence`: what it can measure for a strategy (names of `evidence.EVIDENCE`); with that of
      `evidence.TOWER`, `tower` says where, and pictures say which patches a token is made of.
    * `positions`: the position rules that are defined for it.
    * `encoders`: methods of the multimodal module that encode pictures, and the kind of picture;
      they are watched for the pictures' geometry.
    * `reads`: what it reads of the multimodal module besides the decoder, as dotted paths such as
      `config.spatial_merge_size`; a method's parameter follows a colon. Looked for when a
      model is reduced.
    * `feature_injections`: methods of the decoder that add features to visual tokens between two
      of its layers.
    * `interleaved`: whether the rotary embedding turns neighbours of a head, not its two halves.
    """

    families: ClassVar[frozenset[str]] = frozenset()
    evidence: ClassVar[frozenset[str]] = frozenset({*DECODER, "grid"})
    positions: ClassVar[frozenset[str]] = frozenset({"keep", "compact"})
    encoders: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"get_image_features": IMAGE, "get_video_features": VIDEO}
    )
    reads: ClassVar[tuple[str, ...]] = ()
    feature_injections: ClassVar[tuple[str, ...]] = ()
    interleaved: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        take_renamed(cls, EARLIER)

    def __getattr__(self, name: str) -> Any:
        return read_renamed(self, name, EARLIER)

    def unsupported_reason(self, model: Part) -> str | None:
        """Why it cannot read `model` after all; None for a model of one of its `families`."""
        return None

    @classmethod
    def unmeasured(cls, needs: frozenset[str]) -> frozenset[str]:
        """The evidence among `needs` that it measures on no model."""
        return frozenset(need for need in needs if kind_of(need) not in cls.evidence)

    def missing_evidence(self, needs: frozenset[str], model: Part) -> frozenset[str]:
        """The evidence among `needs` that it cannot measure on `model`.

        A family may have towers of several kinds, not all of which give evidence.

        Raises:
            ValueError: evidence in a layer that the model's tower does not have.
        """
        missing = self.unmeasured(needs)
        asked = of_tower(needs)
        if missing or not asked:
            return missing
        tower = self.tower(self.base(model))
        if tower is None:
            return asked
        for need in asked:
            layer_of(need, len(tower.layers))
        return missing

    def base(self, model: Part) -> Part:
        """The module that merges pictures into the text (`model.model` of a `…ForCausalLM`)."""
        return getattr(model, "base_model", model)

    def decoder(self, model: Part) -> Part:
        """The module whose `layers` are the decoder layers."""
        found = model.get_decoder() if hasattr(model, "get_decoder") else model
        while not hasattr(found, "layers"):
            inner = found.get_decoder()
            if inner is found:
                raise BadOption(f"{type(model).__name__} has no decoder with `layers`")
            found = inner
        return found

    def visual_ids(self, config: Any) -> dict[str, int]:
        """The token id of the placeholders of visual tokens of each kind in `input_ids`."""
        ids = {kind: getattr(config, f"{kind}_token_id", None) for kind in (IMAGE, VIDEO)}
        return {kind: number for kind, number in ids.items() if number is not None}

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """The geometry of the images of one encoder call, in order.

        Args:
            base: the multimodal module.
            call: the arguments of the call by name.
            output: what the encoder returned; `pooler_output` holds the features per image.
        """
        features = getattr(output, "pooler_output", output)
        return [Picture.unknown(len(image)) for image in features]

    def clips(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """The same for the videos of one encoder call; each is one picture of several frames."""
        return self.pictures(base, call, output)

    def assemble(
        self, parts: Sequence[Picture], ids: Sequence[int] | None, visual: Sequence[bool]
    ) -> list[Picture]:
        """The pictures of one sample, where the encoder is given parts of them (tiles).

        Args:
            parts: what the encoder was given for the sample, in reading order.
            ids: the sample's token ids, padding included; None where it was given embeddings.
            visual: which of its tokens are visual.
        """
        return list(parts)

    def tower(self, base: Part) -> Tower | None:
        """The vision tower of a family whose `evidence` has some from there."""
        return None

    def tower_module(self, base: Part) -> Part:
        """The vision tower as the multimodal module calls it."""
        return base.vision_tower

    def merging(self, base: Part) -> frozenset[str]:
        """What the language model may get where tokens are merged inside its vision tower.

        `"expanded"`: as many tokens as ever; the tower's layers are in the order of `Tower`,
        and what uses its output reads its `hidden_states` or `last_hidden_state`. `"merged"`:
        every group once; a visual token is made of one patch, which its picture names.
        """
        return frozenset()

    def view(self, processor: Any, width: int, height: int) -> Box:
        """The part of an original picture that the tokens see, as fractions of it.

        Args:
            processor: the checkpoint's image processor; CLIP's resizes the shorter side and cuts
                out the centre, LLaVA's may pad to a square instead.
            width: of the original, in pixels.
            height: likewise.
        """
        size = getattr(processor, "size", None)
        if _side(size, "longest_edge") is not None:  # scaled or stretched; padding is of a batch
            return WHOLE
        if getattr(processor, "do_pad", False):  # to a square, before resizing
            side = max(width, height)
            x, y = (side - width) / 2 / width, (side - height) / 2 / height
            return -x, -y, 1 + x, 1 + y
        shortest = _side(size, "shortest_edge")
        if not getattr(processor, "do_center_crop", False) or shortest is None:
            return WHOLE
        scale = shortest / min(width, height)
        x = _side(processor.crop_size, "width", shortest) / (width * scale)
        y = _side(processor.crop_size, "height", shortest) / (height * scale)
        return (1 - x) / 2, (1 - y) / 2, (1 + x) / 2, (1 + y) / 2

    def key_projection(self, layer: Part) -> Part:
        """The projection whose output `keys` accepts as `projected`, captured as the layer runs."""
        return layer.self_attn.k_proj

    def query_projection(self, layer: Part) -> Part:
        """The projection whose output `queries` accepts as `projected`."""
        return layer.self_attn.q_proj

    def queries(
        self, layer: Part, hidden: Tensor, rotary: Rotary, projected: Tensor | None = None
    ) -> Tensor:
        """(b, h, r, e) rotated queries of `layer` for its inputs `hidden` (b, r, d)."""
        attention = layer.self_attn
        x = self._projected(layer, attention.q_proj, hidden, projected)
        return rotate(_heads(x, attention, "q_norm"), rotary, self.interleaved)

    def keys(
        self, layer: Part, hidden: Tensor, rotary: Rotary, projected: Tensor | None = None
    ) -> Tensor:
        """(b, h_kv, l, e) rotated keys of `layer` for its inputs `hidden` (b, l, d)."""
        attention = layer.self_attn
        x = self._projected(layer, attention.k_proj, hidden, projected)
        return rotate(_heads(x, attention, "k_norm"), rotary, self.interleaved)

    def _projected(
        self, layer: Part, projection: Part, hidden: Tensor, projected: Tensor | None
    ) -> Tensor:
        if projected is not None:
            return projected
        return cast(Tensor, projection(layer.input_layernorm(hidden)))

    def key_groups(self, layer: Part) -> int:
        """How many query heads share a key head."""
        return int(getattr(layer.self_attn, "num_key_value_groups", 1))

    def scores(self, layer: Part, products: Tensor) -> Tensor:
        """What the softmax gets, from query-key `products`: scaled, and capped as in Gemma 2."""
        attention = layer.self_attn
        scaled = products * float(attention.scaling)
        cap = getattr(attention, "attn_logit_softcapping", None)
        return scaled if cap is None else torch.tanh(scaled / cap) * cap

    def tables(self, layer: Part, rotary: Rotary) -> Rotary:
        """Cos and sin (b, l, e) by which `layer` turns a head, from what it is handed."""
        return rotary

    def rotary_kind(self, layer: Part) -> str | None:
        """Which of several rotary tables a layer reads; None where there is one for all."""
        return None

    def rotary(self, decoder: Part, layer: Part, hidden: Tensor, positions: Tensor) -> Rotary:
        """Cos and sin (b, l, e) that `layer` gets for renumbered `positions` (b, l)."""
        kind = self.rotary_kind(layer)
        return cast(
            Rotary, decoder.rotary_emb(hidden, positions, *([] if kind is None else [kind]))
        )


GENERIC = "generic"
"""The adapter for families that have none of their own."""

adapters: Registry[type[Adapter]] = Registry("adapter", "tokenreduce.adapters")
"""Every known model family: name -> adapter class."""


def adapter_for(model: Part) -> Adapter:
    """The adapter of `model`, found by its config's `model_type`, else the generic one.

    Raises:
        ValueError: no adapter reads this family, and it is not built as the generic one expects;
            the supported families are listed, and the check that failed is named.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    for adapter in adapters.values():
        if kind in adapter.families:
            return adapter()
    generic = adapters[GENERIC]()
    reason = generic.unsupported_reason(model)
    if reason is None:
        return generic
    known = sorted(name for adapter in adapters.values() for name in adapter.families)
    raise BadOption(
        f"no adapter reads the model family {kind!r} (supported: {', '.join(known)}), and the "
        f"generic one cannot: {reason}. To add one, subclass tokenreduce.Adapter, state its "
        "`families` and what differs, and register it with @tokenreduce.adapters.register(name); "
        "see the page 'Model families' of the documentation"
    )


def _side(size: Any, name: str, default: Any = None) -> Any:
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return default if value is None else value


def _heads(x: Tensor, attention: Any, norm: str) -> Tensor:
    """(b, l, h * e) -> (b, h, l, e), normalised per head where the family does so (Qwen3)."""
    x = x.view(*x.shape[:-1], -1, attention.head_dim)
    if hasattr(attention, norm):
        x = getattr(attention, norm)(x)
    return x.transpose(1, 2)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT and data-parallel wrappers."""
    found: Any = model
    while True:
        if hasattr(found, "get_base_model"):
            found = found.get_base_model()
        elif isinstance(getattr(found, "module", None), nn.Module) and (
            "module" in getattr(found, "_modules", ()) or not hasattr(found, "config")
        ):  # DDP, DeepSpeed's engine
            found = found.module
        else:
            return found  # type: ignore[no-any-return]
