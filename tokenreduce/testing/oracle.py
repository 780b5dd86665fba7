"""References that the engine is held against; none of them shortens a cache or gathers a mask.

`masked` leaves every token where it is and hides the dropped ones; `pyramid` is a hand-written
loop over the layers, one sample at a time, that renumbers positions after every stop.
Shapes: b samples, l sequence, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.call import cache_in

Kept = Mapping[int, list[Tensor]]
"""`reduction.kept`: per stop and sample, the kept indices among the sample's visual tokens."""


def decoder_of(model: Any) -> Any:
    """The module with the decoder layers."""
    return model.get_decoder()


def dropped(visual: Tensor, kept: Kept) -> dict[int, Tensor]:
    """Per stop, (b, l) True at the visual tokens that are not there any more."""
    masks = {}
    for layer, samples in sorted(kept.items()):
        gone = visual.clone()
        for row, index in enumerate(samples):
            gone[row, visual[row].nonzero()[index, 0]] = False
        masks[layer] = gone
    return masks


@contextmanager
def masked(model: Any, visual: Tensor, kept: Kept) -> Iterator[None]:
    """Inside, `model` keeps all its tokens, and hides the dropped ones from layer k on.

    Law 2 in words: every query in the layers at and after a stop has the tokens that left at the
    stop masked. Positions stay. Works for a whole sequence and for decoding with a cache; tokens
    after `visual` (b, l) are text.

    Args:
        model: an untouched model, with attention "sdpa" or "eager".
        visual: (b, l) True at visual tokens.
        kept: what a reduction recorded (`reduction.kept`).
    """
    gone = dropped(visual, kept)
    kind = decoder_of(model).config._attn_implementation
    handles = []
    for i, layer in enumerate(decoder_of(model).layers):
        at = [stop for stop in gone if stop <= i]
        if not at:
            continue
        hook = _Hide(i, gone[max(at)], kind)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hide:
    """Adds dropped keys to the mask that a layer is given."""

    def __init__(self, layer: int, gone: Tensor, kind: str) -> None:
        self.layer, self.gone, self.kind = layer, gone, kind

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        length = hidden.shape[1]
        cache, mask = cache_in(kwargs), kwargs.get("attention_mask")
        held, offset, start = length, 0, 0
        if cache is not None:
            start = cache.get_seq_length(self.layer)
            held, offset = cache.get_mask_sizes(length, self.layer)
        query = torch.arange(start, start + length)[:, None]
        key = torch.arange(offset, offset + held)[None]
        if mask is None:
            seen = (key <= query)[None, None]
        else:
            seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        gone = nn.functional.pad(self.gone, (0, max(0, offset + held - self.gone.shape[1])))
        gone = gone[:, offset : offset + held]
        # a dropped token still sees itself, so that no row is empty; nothing reads the result
        seen = seen & (~gone[:, None, None, :] | (query == key))
        if self.kind == "eager":
            zero = torch.zeros((), dtype=hidden.dtype)
            seen = torch.where(seen, zero, torch.finfo(hidden.dtype).min)
        return args, {**kwargs, "attention_mask": seen}


def left(visual: Tensor, real: Tensor, kept: Kept) -> Tensor:
    """(b, l) True at the tokens that are there after the last stop: text and kept visual ones."""
    gone = dropped(visual, kept)
    return real & ~gone[max(gone)] if gone else real


def filled(logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Every position's logits replaced by those of the last present token before it.

    Returns them with (b, l) True where there is such a token.
    """
    at = torch.arange(present.shape[1]).expand_as(present)
    source = torch.where(present, at, -1).cummax(dim=1).values
    index = source.clamp(min=0)[..., None].expand_as(logits)
    return logits.gather(1, index), source >= 0


def embedded(model: Any, inputs: Mapping[str, Any], layer: int = 0) -> Tensor:
    """(b, l, d) what the untouched model hands to a decoder layer."""
    return handed(model, inputs)[layer][0]


def handed(model: Any, inputs: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """What the untouched model hands to every decoder layer.

    Returns:
        Per layer (b, l, d) the hidden states, and (b, l, l) True where a query sees a key.
    """
    given: list[tuple[Tensor, Tensor]] = []

    def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach()
        given.append((hidden, _seen(kwargs.get("attention_mask"), hidden)))

    layers = decoder_of(model).layers
    handles = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return given


def _seen(mask: Tensor | None, hidden: Tensor) -> Tensor:
    b, n = hidden.shape[:2]
    if mask is None:
        return torch.ones(b, n, n, dtype=torch.bool).tril()
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen[:, 0].expand(b, n, n)


def pyramid(
    model: Any,
    hidden: Tensor,
    visual: Tensor,
    kept: Mapping[int, Tensor],
    seen: Sequence[Tensor],
    compact: bool = True,
) -> tuple[Tensor, Tensor]:
    """One sample through the layers by hand: dropped for good at each stop, then renumbered.

    Args:
        model: an untouched model.
        hidden: (l, d) the inputs of layer 0, without padding.
        visual: (l,) True at visual tokens.
        kept: `{layer: indices}` of this sample.
        seen: per layer (l, l) True where a query sees a key; windows count original distances.
        compact: positions 0, 1, 2 … after every stop; False keeps the original ones.

    Returns:
        (n, words) logits of the tokens that are left, and (n,) which tokens of l these are.
    """
    decoder = decoder_of(model)
    config = decoder.config
    at, x = torch.arange(len(hidden)), hidden[None]
    slots = visual.nonzero()[:, 0]
    for i, layer in enumerate(decoder.layers):
        if i in kept:
            stays = ~visual
            stays[slots[kept[i]]] = True
            x, at = x[:, stays[at]], at[stays[at]]
        positions = torch.arange(len(at))[None] if compact else at[None]
        mask: Tensor = seen[i][at][:, at][None, None]
        if config._attn_implementation == "eager":
            mask = torch.where(mask, torch.zeros(()), torch.finfo(x.dtype).min)
        rotary = decoder.rotary_emb(x, positions, *_table(decoder, i))
        x = layer(x, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
    logits = model.get_output_embeddings()(decoder.norm(x))[0]
    cap = _cap(model, config)
    return logits if cap is None else torch.tanh(logits / cap) * cap, at


def _cap(model: Any, config: Any) -> float | None:
    """The bound of the logits, where the head keeps to it: PaliGemma's since transformers 5.23."""
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return cap if "softcapping" in inspect.getsource(type(model).forward) else None


def _table(decoder: Any, layer: int) -> tuple[str, ...]:
    """The name of the layer's rotary table, for decoders that have several."""
    several = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
    return (decoder.config.layer_types[layer],) if several else ()
