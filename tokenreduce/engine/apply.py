"""What every decoder layer is called with: the tokens of its stage, in place of all of them.

Shapes: b samples, l logical tokens, p physical tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.engine import contract
from tokenreduce.engine.cache import Pending, ShortLayer, held, short
from tokenreduce.engine.call import LayerCall, usable
from tokenreduce.engine.decide import EMBEDDINGS, capture_for_next, decide
from tokenreduce.engine.hooks import place_of
from tokenreduce.engine.masks import Extent, gathered
from tokenreduce.engine.positions import rotary
from tokenreduce.engine.sequence import Sequence, Stage, moved


def enter(seq: Sequence, call: LayerCall) -> LayerCall:
    """What a decoder layer is called with in a pass with visual tokens."""
    i = call.index
    if seq.config.stops:
        contract.check_cache(call.cache)
    call = _brought(place_of(call.layer, call.hidden), seq, call)
    if usable(call.cache):
        held(call.cache, i)  # a cache that grows with its layers has this one now
    seq.cache = call.cache if seq.cache is None else seq.cache
    if not i and seq.config.strategy.needs & EMBEDDINGS:
        seq.embedded = call.hidden.detach()
    fresh = i >= seq.reached  # a layer that checkpointing calls again finds its stage here
    seq.reached = max(seq.reached, i + 1)
    deciding = fresh and i in seq.config.stops
    stage = decide(seq, call) if deciding else seq.stage(i)
    shorter = apply(seq, stage, call)
    if fresh and i + 1 in seq.config.stops:
        capture_for_next(seq, stage, replace(call, hidden=shorter.hidden))
    return shorter


def apply(seq: Sequence, stage: Stage, call: LayerCall) -> LayerCall:
    """What a layer is called with, for the tokens of its stage.

    Args:
        seq: the pass.
        stage: that the layer belongs to.
        call: with the hidden states (b, p, d) of the layer before, and all else as the model gave
            it, over logical tokens.
    """
    if stage.step is not None and stage.layer == call.index:
        call = replace(call, hidden=stage.step.hidden(call.hidden))
    if stage.whole and not _shortened(call):
        return call
    # asked of the model once: its configuration looks long for every name
    kind = seq.made.once("attention", lambda: seq.config.attention)
    twin = short(call.cache, call.index) if call.cache is not None else None
    tables, ids, shift = rotary(seq, stage, call)
    ragged, mask = stage.ragged, call.mask
    if twin is not None:
        ragged = ragged or twin.ragged
        twin.pending = Pending(seq.length, None, ragged, shift)
    if not stage.whole or mask is not None or ragged or seq.length > 1:
        keys = stage.order if twin is None else _stored(twin, seq, stage)
        if twin is not None and twin.pending is not None and not stage.whole:
            twin.pending.order = keys
        at = Extent(stage.order, keys, seq.start, seq.start + seq.length)
        dtype, given = call.hidden.dtype, mask
        mask = stage.made.once(
            ("mask", ragged),
            lambda: gathered(given, at, ragged=ragged, kind=kind, dtype=dtype),
            given,
            keys,
        )
    if "flash" in kind:
        ids = None  # gaps between positions would be read as the borders of packed sequences
    elif ids is None:
        ids = call.position_ids
    return replace(call, mask=mask, rotary=tables, position_ids=ids)


def follow(seq: Sequence, call: LayerCall) -> LayerCall:
    """A pass of text alone, such as a decoding step, on a short cache.

    What it needs is the same for all layers of a stage on one device, and found once: every other
    layer of a step looks it up.
    """
    if not _shortened(call):
        return call
    twin = call.cache.layers[call.index]
    seq.cache = call.cache
    # where the layer computes
    place: torch.device = getattr(twin.keys, "device", None) or place_of(call.layer, call.hidden)
    seq.move(place, call.index)  # before it is looked up: what the pass has made begins anew there

    def make() -> tuple[Pending | None, Any, Any, Any]:
        here = _brought(place, seq, call)
        made = apply(seq, seq.stage(call.index), here)
        return twin.pending, made.mask, made.rotary, made.position_ids

    what = ("step", twin.seen, twin.tail, twin.ragged, place)
    of = (twin.order, twin.shift, call.mask, call.rotary, call.position_ids)
    found = seq.made.once(what, make, *of)
    twin.pending, call.mask, call.rotary, call.position_ids = found
    return call


def add_between(
    seq: Sequence, add: Callable[..., Tensor], hidden: Tensor, at: Tensor, features: Tensor
) -> Tensor:
    """Features that the decoder adds to its visual tokens between two layers (Qwen3-VL).

    They follow the surviving tokens: what is dropped gets none, what is merged gets its group's.

    Args:
        seq: the pass.
        add: the model's own method; used as long as every token is there.
        hidden: (b, p, d) between two layers.
        at: (b, l) True at the visual tokens of the whole sequence.
        features: (visual tokens, d) one row each, in (batch, sequence) order.
    """
    if not seq.reduced:
        return add(hidden, at, features)
    blank = hidden.new_zeros(seq.batch, seq.length, hidden.shape[-1])
    whole = blank.masked_scatter(at.to(hidden.device)[..., None], features.to(hidden))
    for stage in seq.stops:
        if stage.step is not None:
            whole = stage.step.hidden(whole)
    return hidden + whole


def _brought(device: torch.device, seq: Sequence, call: LayerCall) -> LayerCall:
    """Brings the pass to `device`, that of the layer: a model may lie on several (`device_map`).

    What spreads a model over devices moves a layer's inputs later, right before its forward.

    Raises:
        ValueError: a score that reads the layer before, on the other side of a border.
    """
    hidden, changes = call.hidden, dict[str, Any]()
    if device != hidden.device:
        if seq.capture is not None:
            raise ValueError(
                f"the strategy reads layer {call.index - 1} at its stop at layer {call.index}, but "
                f"the model is split between them ({hidden.device} and {device}): move the stop, "
                "or the layer in the device map"
            )
        changes["hidden"] = hidden.to(device)
    seq.move(device, call.index)
    for what in ("mask", "rotary", "position_ids"):
        value = getattr(call, what)
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, Tensor) and first.device != device:
            # every layer is given the same tensors: one copy for all on this device
            changes[what] = seq.made.once("moved", partial(moved, value, device), value)
    return replace(call, **changes) if changes else call


def _shortened(call: LayerCall) -> bool:
    """Whether the layer's cache holds fewer keys than tokens were seen."""
    if not usable(call.cache) or len(call.cache.layers) <= call.index:
        return False
    return isinstance(call.cache.layers[call.index], ShortLayer)


def _stored(twin: ShortLayer, seq: Sequence, stage: Stage) -> Tensor:
    """(b, k) logical order of the keys that the layer will hold; one tensor for a whole stage."""

    def make() -> Tensor:
        if not twin.seen:
            return stage.order
        return torch.cat([twin.full_order(seq.batch, seq.device), stage.order], dim=1)

    return stage.made.once(("stored", twin.seen, twin.tail), make, twin.order)
