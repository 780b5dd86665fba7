"""Cache layers that store fewer keys than they have seen tokens.

transformers computes positions, masks and slices from `get_seq_length()`; a shortened layer goes
on reporting the logical length, and remembers which logical token each stored key belongs to.
Shapes: b samples, p physical (stored) tokens.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

CROPS_TO_LENGTH = "max_length" in inspect.signature(DynamicLayer.crop).parameters
"""Whether `crop(n)` of this transformers leaves n tokens; later ones only take -n tokens away."""


@dataclass
class Pending:
    """What the next `update` of a short layer stores.

    `order` (b, p) gives the logical index of every key after the update, -1 for filler; None when
    the new tokens simply follow. `tokens` is the logical number of new tokens.
    """

    tokens: int
    order: Tensor | None
    ragged: bool
    shift: Tensor | None


class ShortLayer:
    """Mixed into a transformers cache layer class: short storage, logical length."""

    _layer_type: str | None = None  # a value would register the class for every model
    windowed = False  # whether the class below keeps a sliding window
    keys: Any
    values: Any

    def begin(self) -> None:
        """Starts the bookkeeping on a layer that has stored every token so far."""
        self.seen: int = cast(Any, super()).get_seq_length()
        self.order: Tensor | None = None
        self.tail: int = self.seen
        self.ragged = False
        self.shift: Tensor | None = None
        self.pending: Pending | None = None

    def full_order(self, batch: int, device: torch.device) -> Tensor:
        """(b, p) logical index of every stored key."""
        new = torch.arange(self.seen - self.tail, self.seen, device=device).expand(batch, -1)
        return new if self.order is None else torch.cat([self.order, new], dim=1)

    def get_seq_length(self) -> int:
        """The number of tokens that the layer has seen, stored or dropped."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the logical keys that a mask must cover."""
        if self.windowed:
            return cast(tuple[int, int], cast(Any, super()).get_mask_sizes(query_length))
        return self.seen + query_length, 0

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of the tokens that are left."""
        pending, self.pending = self.pending, None
        if pending is None:
            raise RuntimeError(
                "this KV cache holds reduced visual tokens, but the model that reads it is not "
                "reduced: go on inside the same tr.reduce(...), or start from a new cache"
            )
        stored = cast(tuple[Tensor, Tensor], cast(Any, super()).update(*args, **kwargs))
        self.seen += pending.tokens
        if pending.order is None:
            self.tail += pending.tokens
        else:
            self.order, self.tail = pending.order, 0
        self.ragged, self.shift = pending.ragged, pending.shift
        if self.windowed:
            self.cumulative_length = self.seen
            held = self.keys.shape[-2]
            if held < self.tail:
                self.order, self.tail = None, held
            elif self.order is not None:
                self.order = self.order[:, self.order.shape[1] - (held - self.tail) :]
        return stored

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follows the beams."""
        cast(Any, super()).reorder_cache(beam_idx)
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every sample."""
        cast(Any, super()).batch_repeat_interleave(repeats)
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some samples."""
        cast(Any, super()).batch_select_indices(indices)
        self._rows(lambda x: x[indices])

    def _rows(self, change: Any) -> None:
        if self.order is not None:
            self.order = change(self.order)
        if self.shift is not None:
            self.shift = change(self.shift)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens, -1 for the last one; every sample must still hold them.

        Where transformers also crops to a length, a positive number is the length that stays.
        """
        n = -int(tokens_to_remove)
        if CROPS_TO_LENGTH and n <= 0:
            n = max(self.seen + n, 0)
        if n < 0:
            raise ValueError(
                f"crop({tokens_to_remove}): a reduced cache is cropped by a negative number, of "
                "tokens to remove"
            )
        if n and isinstance(self, DynamicSlidingWindowLayer):
            raise ValueError("cropping a reduced sliding-window cache is not supported")
        # drafts that came with the prompt are in `order` (assisted decoding)
        inside, order = n - self.tail, self.order
        if inside > 0:
            first = self.seen - n
            last = torch.arange(first, first + inside, device=self.keys.device)
            if order is None or order.shape[1] < inside or (order[:, -inside:] != last).any():
                raise ValueError(
                    f"cannot crop {n} tokens from a reduced cache: some of them were dropped"
                )
            self.order = order[:, :-inside]
        if n:
            self.keys, self.values = self.keys[..., :-n, :], self.values[..., :-n, :]
            self.seen, self.tail = self.seen - n, max(-inside, 0)

    def reset(self) -> None:
        """Empties the layer; up to transformers 5.17 what it stores becomes zeros instead."""
        cast(Any, super()).reset()
        if not cast(Any, super()).get_seq_length():  # else zeros stand for the tokens seen so far
            self.begin()


class ShortDynamicLayer(ShortLayer, DynamicLayer):  # type: ignore[misc]
    """A growing cache layer with fewer keys than tokens seen."""


class ShortDynamicSlidingWindowLayer(ShortLayer, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """The same after a sliding window."""

    windowed = True


_SHORT: dict[type, type] = {
    DynamicLayer: ShortDynamicLayer,
    DynamicSlidingWindowLayer: ShortDynamicSlidingWindowLayer,
}
"""The short kind of each kind of cache layer that can be made short."""
SHORTENED = tuple(_SHORT)


def short(cache: Cache, layer: int) -> ShortLayer:
    """The cache layer `layer`, made able to hold fewer tokens than it has seen.

    Raises:
        ValueError: a kind of cache that cannot be shortened (static, quantised, offloaded …), or a
            sliding window whose tokens are to be taken back.
    """
    found = cache.layers[layer]
    if isinstance(found, ShortLayer):
        return found
    kind = type(found)
    if kind not in _SHORT:
        raise ValueError(
            f"a {kind.__name__} cannot hold reduced tokens: use a DynamicCache (the default), "
            "i.e. no cache_implementation"
        )
    if getattr(found, "record_past", False):
        raise ValueError(
            "assisted decoding takes drafts back, which a sliding-window layer of reduced tokens "
            "cannot: generate without an assistant and without prompt_lookup_num_tokens"
        )
    # the class of an instance cannot be assigned (object layouts differ), so a twin takes its place
    twin: Any = object.__new__(_SHORT[kind])
    twin.__dict__.update(found.__dict__)
    twin.begin()
    cache.layers[layer] = twin
    return cast(ShortLayer, twin)


def short_layers(cache: Any) -> frozenset[int]:
    """The layers of a cache that hold fewer keys than tokens were seen."""
    layers = cache.layers if isinstance(cache, Cache) else ()
    return frozenset(i for i, one in enumerate(layers) if isinstance(one, ShortLayer))


def held(cache: Cache, layer: int) -> CacheLayerMixin:
    """The cache's layer `layer`; caches that add layers as they go are extended to have it."""
    template = getattr(cache, "layer_class_to_replicate", None)
    while template is not None and len(cache.layers) <= layer:
        cache.layers.append(template())
    return cache.layers[layer]
