"""Rotary tables and position ids of the tokens that are left.

Shapes: b samples, l logical tokens, p physical tokens, d width, e head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.engine.call import LayerCall
from tokenreduce.engine.sequence import Sequence, Stage, rows_of
from tokenreduce.tower import Rotary

Turned = tuple[Rotary, Tensor | None, Tensor | None]
"""Rotary tables, position ids, and the shift that decoding goes on with."""


def rotary(seq: Sequence, stage: Stage, call: LayerCall) -> Turned:
    """Rotary tables and position ids of a stage, and the shift that decoding goes on with.

    With `keep` the model's own tables are gathered. With `compact` a token's position falls by the
    number of visual tokens dropped before it; the shift (b,) of the layer's cache is what earlier
    passes have dropped.
    """
    shift, ids, config = shift_of(call), call.position_ids, seq.config
    if config.positions == "keep":
        return *_gathered(seq, stage, call), shift
    table = config.adapter.rotary_kind(call.layer)
    if not stage.whole:
        return stage.made.once(
            ("compact", table), lambda: _renumbered(seq, stage, call), shift, ids
        )
    if shift is None:
        return call.rotary, ids, None
    # one call makes the tables of all layers, in whose cache the shifts are
    cached = [getattr(layer, "shift", None) for layer in call.cache.layers]
    found = seq.made.once(("shifted", table), lambda: _shifted(seq, call, cached), ids)
    if id(shift) not in found:  # it lies on another device
        found = _shifted(seq, call, [shift])
    _, tables, own = found[id(shift)]
    return tables, own, shift


def shift_of(call: LayerCall) -> Tensor | None:
    """(b,) what earlier passes have dropped, where the layer's cache says so."""
    layers = getattr(call.cache, "layers", ())
    return getattr(layers[call.index], "shift", None) if len(layers) > call.index else None


def _gathered(seq: Sequence, stage: Stage, call: LayerCall) -> tuple[Rotary, Tensor | None]:
    """The model's own tables and ids at the tokens that are left."""
    tables, ids = call.rotary, call.position_ids
    if stage.whole:
        return tables, ids
    at = stage.kept.index
    assert at is not None  # a stage that lacks tokens says which are left

    def pick(x: Tensor) -> Tensor:
        if x.dim() > 3:  # axes in front (Qwen2-VL's, up to transformers 5.16)
            return torch.stack([pick(axis) for axis in x])
        return rows_of(x.expand(seq.batch, *x.shape[1:]), at)

    def pick_ids(x: Tensor) -> Tensor:
        return torch.stack([pick(axis) for axis in x]) if x.dim() > 2 else pick(x)

    cos, sin = stage.made.once("rotary", lambda: tuple(map(pick, tables)), tables)
    if ids is not None:
        own = ids
        ids = stage.made.once("ids", lambda: pick_ids(own), own)
    return (cos, sin), ids


def _shifted(
    seq: Sequence, call: LayerCall, shifts: list[Tensor | None]
) -> dict[int, tuple[Tensor, Rotary, Tensor]]:
    """Every shift with its rotary tables and position ids, by the id of the shift; no `None`."""
    ids = call.position_ids
    assert ids is not None  # the adapter allows `compact` only where layers receive position ids
    ids = ids.expand(seq.batch, -1)
    several = {id(s): s for s in shifts if s is not None and s.device == ids.device}
    moved = torch.cat([ids - shift[:, None] for shift in several.values()]).clamp(min=0)
    parts = (moved, *_tables(seq, call, moved))
    found = zip(*(part.chunk(len(several)) for part in parts), strict=True)
    return {
        key: (shift, (cos, sin), own)
        for (key, shift), (own, cos, sin) in zip(several.items(), found, strict=True)
    }


def _renumbered(seq: Sequence, stage: Stage, call: LayerCall) -> Turned:
    """The same for a stage that lacks tokens; the shift grows by what it lacks."""
    ids, shift, layout = call.position_ids, shift_of(call), stage.kept
    assert ids is not None  # the adapter allows `compact` only where layers receive position ids
    assert layout.index is not None  # a stage that lacks tokens says which are left
    ids = ids.expand(seq.batch, -1)
    present = torch.zeros(seq.batch, seq.length + 1, dtype=torch.bool, device=seq.device)
    at = layout.index
    if layout.valid is not None:
        at = torch.where(layout.valid, at, seq.length)
    present.scatter_(1, at, True)
    dropped = (seq.visual.visual & ~present[:, : seq.length]).long()
    ids = ids.gather(1, layout.index) - dropped.cumsum(dim=1).gather(1, layout.index)
    total = dropped.sum(dim=1)
    if shift is not None:
        ids, total = ids - shift[:, None], total + shift
    ids = ids.clamp(min=0)
    return _tables(seq, call, ids), ids, total


def _tables(seq: Sequence, call: LayerCall, ids: Tensor) -> Rotary:
    """Rotary tables at other position ids than the model's own."""
    config = seq.config
    return config.adapter.rotary(config.decoder, call.layer, call.hidden, ids)
