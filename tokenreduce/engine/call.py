"""How transformers is spelled: the arguments and outputs of layers, decoders and models, by role.

transformers renames what it hands on: a KV cache was `past_key_values` up to 5.23 and is `cache`
from 5.24 on. The engine speaks of roles (hidden states, mask, rotary tables, position ids, cache);
this file alone knows their names. A cache is found by its type; names are hints.
Shapes: b samples, l logical tokens, p physical tokens, d width, e head width.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache as remembered
from typing import Any, cast

from torch import Tensor, nn
from transformers.cache_utils import Cache

from tokenreduce.tower import Part, Rotary

HIDDEN = ("hidden_states",)
MASK = ("attention_mask",)
ROTARY = ("position_embeddings",)
POSITION_IDS = ("position_ids",)
CACHE = ("cache", "past_key_values", "past_key_value")
"""Names under which each role has been handed on, the newest first."""

IMAGES = ("pixel_values", "image_patches", "image_pixel_values")
"""How the names of arguments begin that hold pictures."""
VIDEOS = "pixel_values_videos"
ENCODED = "mm_encoder_outputs"
PACKED = ("cu_seq_lens", "cu_seqlens")
"""How the names of arguments begin that say where packed prompts end."""

LAYER = frozenset(
    {*HIDDEN, *MASK, *ROTARY, *POSITION_IDS, *CACHE}
    | {"cache_position", "use_cache", "output_attentions", "output_router_logits"}
)
"""What the engine can shorten, or hand on as it is, among the arguments of a decoder layer."""
DECODER = LAYER | {"input_ids", "inputs_embeds", "output_hidden_states", "return_dict"}
"""The same of the decoder: any other argument could reach its tokens between two layers."""


# -- caches ----------------------------------------------------------------------------------------


def usable(cache: Any) -> bool:
    """Whether `cache` is one whose layers the engine can read and replace."""
    return isinstance(cache, Cache) and hasattr(cache, "layers")


def foreign(cache: Any) -> bool:
    """Whether `cache` takes keys and values, but is of no kind that the engine knows.

    Such are the paged cache of continuous batching, and whatever wraps a cache.
    """
    return cache is not None and not usable(cache)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, whatever its name; None when there is none."""
    for name in CACHE:
        found = arguments.get(name)
        if found is not None:
            return found
    return next(filter(_looks_like_one, arguments.values()), None)


def cache_of(output: Any) -> Any:
    """The KV cache in what a model, a decoder or `generate` returned; None when there is none.

    Args:
        output: a `ModelOutput`, or the tuple that `return_dict=False` gives.
    """
    if isinstance(output, tuple):
        return next(filter(_looks_like_one, output), None)
    # plain data: an output warns when it is asked for a name that it no longer has
    return cache_in(dict(output.items() if isinstance(output, Mapping) else vars(output)))


def with_cache(model: Part, cache: Any) -> dict[str, Any]:
    """`cache` as the keyword argument that `model` takes: `model(**inputs, **with_cache(…))`.

    Args:
        model: a model, a decoder or a layer.
        cache: what it continues.
    """
    return {cache_name(model.forward): cache}


def cache_name(call: Callable[..., Any]) -> str:
    """The name under which a call takes a KV cache; as `generate` says if it only hands it on."""
    return role(call, CACHE, "Cache") or _usual()


def _looks_like_one(x: Any) -> bool:
    if isinstance(x, Cache):
        return True
    if x is None or isinstance(x, Tensor | nn.Module | Mapping | tuple | bool | int | str):
        return False
    return hasattr(x, "update") and (hasattr(x, "get_seq_length") or hasattr(x, "layers"))


@remembered
def _usual() -> str:
    from transformers.generation import GenerationMixin

    found = role(GenerationMixin.prepare_inputs_for_generation, CACHE, "Cache")
    return found or CACHE[0]


def role(call: Callable[..., Any], names: tuple[str, ...], kind: str | None = None) -> str | None:
    """The name of the parameter of `call` that has a role: one of `names`, or by its type.

    Args:
        call: a forward, or another method.
        names: that the role is known by.
        kind: how the annotation of a parameter ends that has the role under any name.
    """
    parameters = inspect.signature(call).parameters
    for name in names:
        if name in parameters:
            return name
    if kind is None:
        return None
    words = ((name, str(one.annotation)) for name, one in parameters.items())
    return next((name for name, word in words if re.search(rf"{kind}\b", word)), None)


def catches_all(call: Callable[..., Any]) -> bool:
    """Whether `call` takes keyword arguments that it does not name."""
    given = inspect.signature(call).parameters.values()
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in given)


def parameters(call: Callable[..., Any]) -> set[str]:
    """The names of what `call` takes, without the catch-alls."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(call).parameters.values()
    return {one.name for one in given if one.kind not in kinds}


# -- a decoder layer -------------------------------------------------------------------------------


@dataclass
class LayerCall:
    """What a decoder layer is called with, by role.

    Attributes:
        index: of the layer.
        layer: the module.
        hidden: (b, p, d) hidden states.
        rotary: cos and sin, (b, p, e) or with axes in front, as the layer takes them.
        mask: as the model built it, over logical tokens.
        position_ids: (b, p), or None.
        cache: the KV cache, of any kind, or None.
        rest: every other keyword argument.
        names: under which each role came.
        by_name: whether hidden states came as a keyword.
    """

    index: int
    layer: Part
    hidden: Tensor
    rotary: Rotary
    mask: Any
    position_ids: Tensor | None
    cache: Any
    rest: dict[str, Any]
    names: dict[str, str]
    by_name: bool

    @classmethod
    def read(
        cls,
        index: int,
        layer: Part,
        order: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> LayerCall:
        """The roles among the arguments of a layer.

        Args:
            index: of the layer.
            layer: the module.
            order: the names of its forward's parameters, which `args` follow.
            args: by position.
            kwargs: by name.
        """
        rest = dict(kwargs)
        if len(args) > 1:
            rest |= zip(order[1:], args[1:], strict=False)
        names, found = {}, [None] * len(ROLES)
        for at, (what, known) in enumerate(ROLES.items()):
            for name in known:
                if name in rest:
                    names[what] = name
                    found[at] = rest.pop(name)
                    break
        hidden, rotary, mask, ids, cache = found
        if cache is None:
            for name, value in rest.items():
                if _looks_like_one(value):
                    names["cache"], cache = name, rest.pop(name)
                    break
        first = args[0] if args else hidden
        return cls(index, layer, first, rotary, mask, ids, cache, rest, names, not args)  # type: ignore[arg-type]

    def write(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments again, as the layer takes them."""
        kwargs, names = self.rest, self.names
        given = (self.hidden, self.rotary, self.mask, self.position_ids, self.cache)
        for what, value in zip(ROLES, given, strict=True):
            if what in names:
                kwargs[names[what]] = value
            elif value is not None and what != "hidden":
                kwargs[ROLES[what][0]] = value
        return ((), kwargs) if self.by_name else ((self.hidden,), kwargs)


def layer_call(
    layer: Part, hidden: Tensor, rotary: Rotary, position_ids: Tensor, cache: Any
) -> LayerCall:
    """A call of `layer` alone, without a mask, by the names that its forward knows."""
    names = {what: role(layer.forward, known) or known[0] for what, known in ROLES.items()}
    names["cache"] = cache_name(layer.forward)
    del names["hidden"]  # by position
    return LayerCall(0, layer, hidden, rotary, None, position_ids, cache, {}, names, False)


ROLES = {
    "hidden": HIDDEN,
    "rotary": ROTARY,
    "mask": MASK,
    "position_ids": POSITION_IDS,
    "cache": CACHE,
}
"""The roles of a layer's arguments, and the names by which each is known."""


def video_of(call: Mapping[str, Any]) -> Any:
    """The raw videos that a video encoder is given; as `pixel_values` up to transformers 5.17."""
    found = call.get(VIDEOS)
    return call.get(IMAGES[0]) if found is None else found


# -- a decoder, the multimodal module, the model ---------------------------------------------------


@dataclass(frozen=True)
class ModelCall:
    """What a model, its multimodal module or its decoder is called with, by role.

    Attributes:
        given: the arguments by name.
    """

    given: Mapping[str, Any]

    @property
    def tokens(self) -> Tensor:
        """(b, l) ids or (b, l, d) embeddings: what the sequence is made of."""
        x = self.embeddings
        return cast(Tensor, self.ids if x is None else x)

    @property
    def ids(self) -> Tensor | None:
        """(b, l) token ids."""
        return self.given.get("input_ids")

    @property
    def embeddings(self) -> Tensor | None:
        """(b, l, d) in place of token ids."""
        return self.given.get("inputs_embeds")

    @property
    def mask(self) -> Any:
        """The attention mask, of any kind."""
        return self.given.get(MASK[0])

    @property
    def position_ids(self) -> Tensor | None:
        """(b, l), or (axes, b, l)."""
        return self.given.get(POSITION_IDS[0])

    @property
    def packed(self) -> bool:
        """Whether lengths of packed prompts were given (padding-free training)."""
        return any(name.startswith(PACKED) and x is not None for name, x in self.given.items())

    @property
    def cache(self) -> Any:
        """The KV cache that the call continues."""
        return cache_in(self.given)

    @property
    def start(self) -> int:
        """How many tokens are cached before this call."""
        cache = self.cache
        return int(cache.get_seq_length()) if usable(cache) else 0

    @property
    def labels(self) -> Tensor | None:
        """(b, l) ids, each at its own token, -100 where nothing is to be predicted."""
        return self.given.get("labels")

    @property
    def shifted_labels(self) -> Tensor | None:
        """(b, l) the same at the tokens that predict them."""
        return self.given.get(SHIFTED)

    @property
    def wanted(self) -> Any:
        """For how many of the last tokens logits are wanted, or for which."""
        return self.given.get("logits_to_keep")

    @property
    def videos(self) -> Any:
        """The raw videos."""
        return self.given.get(VIDEOS)

    @property
    def encoded(self) -> Mapping[str, Any]:
        """Outputs of the encoders, by kind, from a call that was made before."""
        found = self.given.get(ENCODED)
        return found if isinstance(found, Mapping) else {}

    @property
    def raw(self) -> list[str]:
        """The names of the arguments that hold raw pictures and videos."""
        return [
            name
            for name, value in self.given.items()
            if value is not None and name.startswith(IMAGES)
        ]


SHIFTED = "shift_labels"
"""The argument under which a loss takes labels that are at the tokens that predict them."""


def last_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A decoder's output with its last hidden states (b, l, d) changed."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.last_hidden_state = change(output.last_hidden_state)
    return output


def states_of(output: Any) -> tuple[Tensor | None, ...] | None:
    """The hidden states of every layer in a decoder's output, the input of layer 0 first."""
    found: tuple[Tensor | None, ...] | None = getattr(output, "hidden_states", None)
    return found


def set_states(output: Any, states: tuple[Tensor | None, ...]) -> None:
    """Puts the hidden states of every layer in place of a decoder's own."""
    output.hidden_states = states
