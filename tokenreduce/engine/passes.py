"""What happens at the input of every decoder layer: decide at a stop, then hand over what is left.

Shapes: b samples, l logical tokens, p physical tokens, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import Adapter, Part, Rotary
from tokenreduce.engine.cache import Pending, ShortLayer, held, short
from tokenreduce.engine.evidence import Capture, Handover, LayerView, evidence
from tokenreduce.engine.masks import gathered
from tokenreduce.engine.sequence import Layout, Sequence, advance, rows_of
from tokenreduce.scheduler import Stop
from tokenreduce.strategy import Positions, Strategy
from tokenreduce.tokens import Plan, Tokens

FROM_BEFORE = frozenset({"attention_before", "attention_received"})
"""Evidence that is captured while the layer before a stop runs."""
RESHAPED = ("attention_mask", "position_embeddings", "position_ids")
"""What a layer is given per token, beside the hidden states."""


@dataclass
class Setup:
    """What stays the same from pass to pass."""

    adapter: Adapter
    decoder: Part
    strategy: Strategy
    stops: Mapping[int, Stop]
    positions: Positions
    seed: int
    names: tuple[str, ...]  # parameters of a decoder layer's forward, after self


def enter(
    setup: Setup,
    i: int,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seq: Sequence,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of decoder layer `i` for the tokens that are left."""
    for name, value in zip(setup.names[1:], args[1:], strict=False):
        kwargs[name] = value
    if seq.visual is None:
        _follow(setup, i, args[0] if args else kwargs["hidden_states"], kwargs, seq)
        return args[:1], kwargs
    by_name = not args
    hidden: Tensor = kwargs.pop("hidden_states") if by_name else args[0]
    cached = held(kwargs.get("past_key_values"), i)
    if i not in seq.layouts:  # a layer that checkpointing runs again finds its layout here
        if i in setup.stops:
            _decide(setup, i, layer, hidden, kwargs, seq, cached)
        seq.layouts[i] = seq.layout
        fresh = True
    else:
        fresh = False
    layout, step = seq.layouts[i], seq.steps.get(i)
    if step is not None:
        hidden = step.hidden(hidden)
    logical = dict(kwargs)
    past = _past(cached, seq)
    if layout is not None or isinstance(cached, ShortLayer):
        _shorten(setup, i, hidden, kwargs, seq, layout)
    if fresh and i + 1 in setup.stops:
        wanted = setup.strategy.needs & FROM_BEFORE
        if wanted:
            # a score is no part of the loss, and checkpointing counts tensors
            with torch.no_grad():
                view = _view(setup, layer, hidden, logical, seq, layout, cached, past)
                seq.evidence[i + 1] = Capture(view, wanted)
    if by_name:
        kwargs["hidden_states"] = hidden
        return (), kwargs
    return (hidden,), kwargs


def _follow(setup: Setup, i: int, hidden: Tensor, kwargs: dict[str, Any], seq: Sequence) -> None:
    """A pass of text alone, such as a decoding step: only a short cache needs anything.

    What it needs is the same for all layers of a stage, and found once.
    """
    cache = kwargs.get("past_key_values")
    if cache is None or len(cache.layers) <= i or not isinstance(cache.layers[i], ShortLayer):
        return
    twin: ShortLayer = cache.layers[i]
    of = [kwargs.get(name) for name in RESHAPED]
    key = (id(twin.order), id(twin.shift), twin.seen, twin.tail, twin.ragged, *map(id, of))

    def make() -> tuple[Pending | None, dict[str, Any]]:
        changed = dict(kwargs)
        _shorten(setup, i, hidden, changed, seq, None)
        return twin.pending, {name: changed[name] for name in RESHAPED if name in changed}

    twin.pending, changes = seq.once(key, make, twin.order, twin.shift, of)
    kwargs.update(changes)


def _decide(
    setup: Setup,
    i: int,
    layer: nn.Module,
    hidden: Tensor,
    kwargs: dict[str, Any],
    seq: Sequence,
    cached: Any,
) -> None:
    """Asks the strategy at a stop, and moves the sequence to the layout of its plan."""
    before = seq.layout or seq.once("first", seq.first)
    capture: Capture | None = seq.evidence.pop(i, None)
    stop = setup.stops[i]
    budget = tuple(
        min(stop.count(n), have) for n, have in zip(seq.counts, before.counts, strict=True)
    )
    if budget == before.counts:
        keep = torch.arange(before.visual.shape[1], device=seq.device).expand_as(before.visual)
        seq.plans[i] = Plan(keep, before.visual_valid)
        seq.kept[i] = (before.origin, before.visual_valid, budget)
        return
    assert seq.places is not None  # set with `seq.visual`
    # gradients flow through the layer's own projections, never through those of a score
    handing = not (torch.is_grad_enabled() or layer.training or torch.compiler.is_compiling())
    with torch.no_grad():
        past = _past(cached, seq)
        view = _view(setup, layer, hidden, kwargs, seq, seq.layout, cached, past)
        view.handing = handing and Handover.fits(setup.adapter.key_projection(layer))
        tokens = Tokens(
            hidden=rows_of(hidden, before.visual),
            valid=before.visual_valid,
            origin=before.origin,
            places=seq.places.gather(before.origin),
            counts=before.counts,
            original=max(seq.counts),
            layer=i,
            seed=setup.seed,
            separators=seq.separators,
            evidence=evidence(view, capture, setup.strategy.needs),
        )
        plan = setup.strategy.plan(tokens, budget)
    _check(setup.strategy, plan, budget, i)
    seq.layout, seq.steps[i] = advance(seq, before, plan, budget)
    if view.projected is not None and plan.group is None:
        keys = rows_of(view.projected, seq.steps[i].rows)
        seq.evidence[i] = Handover(setup.adapter.key_projection(layer), keys)
    seq.plans[i] = plan
    seq.kept[i] = (seq.layout.origin, seq.layout.visual_valid, budget)


def _check(strategy: Strategy, plan: Plan, budget: tuple[int, ...], layer: int) -> None:
    """Refuses a plan of another size than its budget; shapes only, so without a host sync."""
    b, k = plan.keep.shape
    even = len(set(budget)) <= 1
    if (b, k) != (len(budget), max(budget)) or (plan.valid is None and not even):
        raise ValueError(
            f"{type(strategy).__name__} kept {k} tokens of {b} samples at layer {layer}, but the "
            f"budget was {list(budget)}: a plan keeps exactly its budget, with `valid` where "
            "samples differ"
        )


def _past(cached: Any, seq: Sequence) -> tuple[Tensor, Tensor] | None:
    """Keys that were cached before this pass, and their logical order (b, p)."""
    if cached is None or not seq.start or not cached.is_initialized:
        return None
    if isinstance(cached, ShortLayer):
        return cached.keys, cached.full_order(seq.batch, seq.device)
    stored = cached.keys.shape[-2]
    order = torch.arange(seq.start - stored, seq.start, device=seq.device)
    return cached.keys, order.expand(seq.batch, -1)


def _view(
    setup: Setup,
    layer: nn.Module,
    hidden: Tensor,
    kwargs: dict[str, Any],
    seq: Sequence,
    layout: Layout | None,
    cached: Any,
    past: tuple[Tensor, Tensor] | None,
) -> LayerView:
    rotary = _rotary(setup, hidden, kwargs, seq, layout, getattr(cached, "shift", None))[0]
    mask = kwargs.get("attention_mask")
    whole = layout or seq.once("first", seq.first)
    return LayerView(setup.adapter, seq, layer, whole, hidden.detach(), rotary, mask, past)


def _shorten(
    setup: Setup,
    i: int,
    hidden: Tensor,
    kwargs: dict[str, Any],
    seq: Sequence,
    layout: Layout | None,
) -> None:
    """Mask, rotary embedding, position ids and cache bookkeeping of the tokens that are left."""
    ragged = layout is not None and layout.valid is not None
    cache = kwargs.get("past_key_values")
    twin = short(cache, i) if cache is not None else None
    shift = twin.shift if twin is not None else None
    rotary, ids, shift = _rotary(setup, hidden, kwargs, seq, layout, shift)
    mask = kwargs.get("attention_mask")
    if twin is not None:
        ragged = ragged or twin.ragged
        twin.pending = Pending(seq.length, None, ragged, shift)
    if layout is not None or mask is not None or ragged or seq.length > 1:
        queries = seq.order(layout)
        keys = queries if twin is None else _stored(twin, seq, queries)
        if twin is not None and twin.pending is not None and layout is not None:
            twin.pending.order = keys
        total = seq.start + seq.length
        kwargs["attention_mask"] = seq.once(
            ("mask", id(mask), id(queries), id(keys), ragged),
            lambda: gathered(
                mask,
                queries,
                keys,
                start=seq.start,
                total=total,
                ragged=ragged,
                kind=_kind(setup.decoder),
                dtype=hidden.dtype,
            ),
            mask,
            keys,
        )
    kwargs["position_embeddings"] = rotary
    if ids is not None:
        kwargs["position_ids"] = ids


def _stored(twin: ShortLayer, seq: Sequence, queries: Tensor) -> Tensor:
    """(b, k) logical order of the keys that the layer will hold; one tensor for a whole stage."""
    key = ("stored", id(twin.order), twin.seen, twin.tail, id(queries))

    def make() -> Tensor:
        if not twin.seen:
            return queries
        return torch.cat([twin.full_order(seq.batch, seq.device), queries], dim=1)

    return seq.once(key, make, twin.order)


def _rotary(
    setup: Setup,
    hidden: Tensor,
    kwargs: dict[str, Any],
    seq: Sequence,
    layout: Layout | None,
    shift: Tensor | None,
) -> tuple[Rotary, Tensor | None, Tensor | None]:
    """Rotary tables and position ids of a layout, and the shift that decoding goes on with.

    With `keep` the model's own tables are gathered. With `compact` a token's position falls by the
    number of visual tokens dropped before it; `shift` (b,) is what earlier passes have dropped.
    """
    tables, ids = kwargs["position_embeddings"], kwargs.get("position_ids")
    index = None if layout is None else layout.index
    if setup.positions == "compact" and index is None and shift is not None:
        # one call makes the tables of all layers, in whose cache the shifts are
        all_ = [getattr(layer, "shift", None) for layer in kwargs["past_key_values"].layers]
        found = seq.once(("shifted", id(ids)), lambda: _shifted(setup, hidden, ids, seq, all_), ids)
        if id(shift) not in found:  # it lies on another device
            found = _shifted(setup, hidden, ids, seq, [shift])
        return (*found[id(shift)][1:], shift)
    if setup.positions == "compact" and layout is not None and index is not None:
        key = ("compact", id(layout), id(shift), id(ids))
        return seq.once(
            key, lambda: _renumbered(setup, hidden, ids, seq, layout, shift), layout, shift, ids
        )
    if index is None:
        return tables, ids, shift
    at = index

    def pick(x: Tensor) -> Tensor:
        return rows_of(x.expand(seq.batch, *x.shape[1:]), at)

    rotary = seq.once(("rotary", id(tables), id(layout)), lambda: tuple(map(pick, tables)), tables)
    if ids is not None:
        ids = seq.once(("ids", id(ids), id(layout)), lambda: pick(kwargs["position_ids"]), ids)
    return (rotary[0], rotary[1]), ids, shift


def _shifted(
    setup: Setup, hidden: Tensor, ids: Tensor | None, seq: Sequence, shifts: list[Tensor | None]
) -> dict[int, tuple[Tensor, Rotary, Tensor]]:
    """Every shift with its rotary tables and position ids, by the id of the shift; no `None`."""
    assert ids is not None  # the adapter allows `compact` only where layers receive position ids
    ids = ids.expand(seq.batch, -1)
    several = {id(s): s for s in shifts if s is not None and s.device == ids.device}
    moved = torch.cat([ids - shift[:, None] for shift in several.values()]).clamp(min=0)
    parts = (moved, *setup.adapter.rotary(setup.decoder, hidden, moved))
    found = zip(*(part.chunk(len(several)) for part in parts), strict=True)
    return {
        key: (shift, (cos, sin), own)
        for (key, shift), (own, cos, sin) in zip(several.items(), found, strict=True)
    }


def _renumbered(
    setup: Setup,
    hidden: Tensor,
    ids: Tensor | None,
    seq: Sequence,
    layout: Layout,
    shift: Tensor | None,
) -> tuple[Rotary, Tensor, Tensor | None]:
    """The same for a layout that lacks tokens; the shift grows by what it lacks."""
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
    return setup.adapter.rotary(setup.decoder, hidden, ids), ids, total


def _kind(decoder: Part) -> str:
    return str(getattr(decoder.config, "_attn_implementation", "sdpa"))
