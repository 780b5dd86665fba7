"""Rotary tables and position ids of the tokens that are left.

Shapes: b samples, l logical tokens, p physical tokens, d width, e head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.engine.call import LayerCall
from tokenreduce.engine.sequence import Layout, Sequence, rows_of
from tokenreduce.engine.setup import Setup
from tokenreduce.tower import Rotary


def rotary(
    setup: Setup, call: LayerCall, seq: Sequence, layout: Layout | None, shift: Tensor | None
) -> tuple[Rotary, Tensor | None, Tensor | None]:
    """Rotary tables and position ids of a layout, and the shift that decoding goes on with.

    With `keep` the model's own tables are gathered. With `compact` a token's position falls by the
    number of visual tokens dropped before it; `shift` (b,) is what earlier passes have dropped.
    """
    tables, ids = call.rotary, call.position_ids
    index = None if layout is None else layout.index
    table = setup.adapter.rotary_kind(call.layer)
    if setup.positions == "compact" and index is None and shift is not None:
        # one call makes the tables of all layers, in whose cache the shifts are
        cached = call.cache.layers

        def make() -> dict[int, tuple[Tensor, Rotary, Tensor]]:
            return _shifted(setup, call, seq, [getattr(layer, "shift", None) for layer in cached])

        found = seq.once(("shifted", table, id(ids)), make, ids)
        if id(shift) not in found:  # it lies on another device
            found = _shifted(setup, call, seq, [shift])
        return (*found[id(shift)][1:], shift)
    if setup.positions == "compact" and layout is not None and index is not None:
        key = ("compact", table, id(layout), id(shift), id(ids))
        return seq.once(
            key, lambda: _renumbered(setup, call, seq, layout, shift), layout, shift, ids
        )
    if index is None:
        return tables, ids, shift
    at = index

    def pick(x: Tensor) -> Tensor:
        if x.dim() > 3:  # axes in front (Qwen2-VL's, up to transformers 5.16)
            return torch.stack([pick(axis) for axis in x])
        return rows_of(x.expand(seq.batch, *x.shape[1:]), at)

    def pick_ids(x: Tensor) -> Tensor:
        return torch.stack([pick(axis) for axis in x]) if x.dim() > 2 else pick(x)

    rotary = seq.once(("rotary", id(tables), id(layout)), lambda: tuple(map(pick, tables)), tables)
    if ids is not None:
        own = ids
        ids = seq.once(("ids", id(own), id(layout)), lambda: pick_ids(own), own)
    return (rotary[0], rotary[1]), ids, shift


def _shifted(
    setup: Setup, call: LayerCall, seq: Sequence, shifts: list[Tensor | None]
) -> dict[int, tuple[Tensor, Rotary, Tensor]]:
    """Every shift with its rotary tables and position ids, by the id of the shift; no `None`."""
    ids = call.position_ids
    assert ids is not None  # the adapter allows `compact` only where layers receive position ids
    ids = ids.expand(seq.batch, -1)
    several = {id(s): s for s in shifts if s is not None and s.device == ids.device}
    moved = torch.cat([ids - shift[:, None] for shift in several.values()]).clamp(min=0)
    parts = (moved, *setup.adapter.rotary(setup.decoder, call.layer, call.hidden, moved))
    found = zip(*(part.chunk(len(several)) for part in parts), strict=True)
    return {
        key: (shift, (cos, sin), own)
        for (key, shift), (own, cos, sin) in zip(several.items(), found, strict=True)
    }


def _renumbered(
    setup: Setup, call: LayerCall, seq: Sequence, layout: Layout, shift: Tensor | None
) -> tuple[Rotary, Tensor, Tensor | None]:
    """The same for a layout that lacks tokens; the shift grows by what it lacks."""
    ids = call.position_ids
    assert ids is not None  # the adapter allows `compact` only where layers receive position ids
    assert layout.index is not None  # and in passes with visual tokens, which alone drop any
    assert seq.visual is not None
    ids = ids.expand(seq.batch, -1)
    present = torch.zeros(seq.batch, seq.length + 1, dtype=torch.bool, device=seq.device)
    at = layout.index
    if layout.valid is not None:
        at = torch.where(layout.valid, at, seq.length)
    present.scatter_(1, at, True)
    dropped = (seq.visual & ~present[:, : seq.length]).long()
    ids = ids.gather(1, layout.index) - dropped.cumsum(dim=1).gather(1, layout.index)
    total = dropped.sum(dim=1)
    if shift is not None:
        ids, total = ids - shift[:, None], total + shift
    ids = ids.clamp(min=0)
    return setup.adapter.rotary(setup.decoder, call.layer, call.hidden, ids), ids, total
