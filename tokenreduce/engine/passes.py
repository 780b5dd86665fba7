"""What happens at the input of every decoder layer: decide at a stop, then hand over what is left.

Shapes: b samples, l logical tokens, p physical tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tokenreduce.engine import contract, inside
from tokenreduce.engine.cache import Pending, ShortLayer, held, short
from tokenreduce.engine.call import LayerCall, cache_in, usable
from tokenreduce.engine.evidence import FROM_BEFORE, Capture, evidence
from tokenreduce.engine.handover import Handover
from tokenreduce.engine.hooks import compiled, place_of
from tokenreduce.engine.masks import gathered
from tokenreduce.engine.positions import rotary
from tokenreduce.engine.sequence import Layout, Sequence, advance, moved, rows_of
from tokenreduce.engine.setup import Setup
from tokenreduce.engine.view import LayerView, same_draws
from tokenreduce.strategy import Strategy
from tokenreduce.tokens import Plan, Tokens
from tokenreduce.tower import Part

EMBEDDINGS = frozenset({"embedding", "text_embedding"})
"""Evidence on the input of layer 0, which is then kept for later stops."""


def enter(setup: Setup, call: LayerCall, seq: Sequence) -> LayerCall:
    """What a decoder layer is called with, for the tokens that are left."""
    i = call.index
    if setup.stops:
        contract.check_cache(call.cache)
    call = _brought(place_of(call.layer, call.hidden), call, seq)
    cached = held(call.cache, i) if usable(call.cache) else None
    seq.cache = call.cache if seq.cache is None else seq.cache
    if not i and setup.strategy.needs & EMBEDDINGS:
        seq.embedded = call.hidden.detach()
    fresh = i not in seq.layouts  # a layer that checkpointing runs again finds its layout here
    if fresh:
        if i in setup.stops:
            _decide(setup, call, seq, cached)
        seq.layouts[i] = seq.layout
    layout, step = seq.layouts[i], seq.steps.get(i)
    past = _past(cached, seq)
    shorter = call
    if step is not None:
        shorter = replace(call, hidden=step.hidden(call.hidden))
    if layout is not None or isinstance(cached, ShortLayer):
        shorter = _shortened(setup, shorter, seq, layout)
    if fresh and _asked_next(setup, i + 1, seq):
        wanted = setup.strategy.needs & FROM_BEFORE
        if wanted:
            # a score is no part of the loss, and checkpointing counts tensors
            with torch.no_grad(), same_draws(call.layer):
                logical = replace(call, hidden=shorter.hidden)
                view = _view(setup, logical, seq, layout, cached, past)
                whole = compiled(setup.decoder, call.layer)
                seq.evidence[i + 1] = Capture(view, wanted, watching=not whole)
    return shorter


def _brought(device: torch.device, call: LayerCall, seq: Sequence) -> LayerCall:
    """Brings the pass to `device`, that of the layer: a model may lie on several (`device_map`).

    What spreads a model over devices moves a layer's inputs later, right before its forward.

    Raises:
        ValueError: a score that reads the layer before, on the other side of a border.
    """
    hidden, changes = call.hidden, dict[str, Any]()
    if device != hidden.device:
        if call.index in seq.evidence:
            raise ValueError(
                f"the strategy reads layer {call.index - 1} at its stop at layer {call.index}, but "
                f"the model is split between them ({hidden.device} and {device}): move the stop, "
                "or the layer in the device map"
            )
        changes["hidden"] = hidden.to(device)
    seq.move(device)
    for what in ("mask", "rotary", "position_ids"):
        value = getattr(call, what)
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, Tensor) and first.device != device:
            # every layer is given the same tensors: one copy for all on this device
            changes[what] = seq.once(("moved", id(value)), partial(moved, value, device), value)
    return replace(call, **changes) if changes else call


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
    if seq.layout is None:
        return add(hidden, at, features)
    blank = hidden.new_zeros(seq.batch, seq.length, hidden.shape[-1])
    whole = blank.masked_scatter(at.to(hidden.device)[..., None], features.to(hidden))
    for step in seq.steps.values():
        whole = step.hidden(whole)
    return hidden + whole


def idle(i: int, kwargs: dict[str, Any], seq: Sequence) -> bool:
    """Whether layer `i` has nothing to do in this pass: text alone, and no short cache."""
    if seq.visual is not None:
        return False
    cache = cache_in(kwargs)
    if not isinstance(cache, Cache) or len(cache.layers) <= i:
        return True
    return not isinstance(cache.layers[i], ShortLayer)


def follow(setup: Setup, call: LayerCall, seq: Sequence) -> LayerCall:
    """A pass of text alone, such as a decoding step, on a short cache.

    What it needs is the same for all layers of a stage on one device, and found once: every other
    layer of a step looks it up.
    """
    twin = call.cache.layers[call.index] if usable(call.cache) else None
    if not isinstance(twin, ShortLayer):
        return call
    seq.cache = call.cache
    place: torch.device | None = getattr(twin.keys, "device", None)  # where the layer computes
    of = [call.mask, call.rotary, call.position_ids]
    key = (id(twin.order), id(twin.shift), twin.seen, twin.tail, twin.ragged, place, *map(id, of))

    def make() -> tuple[Pending | None, Any, Any, Any]:
        here = _brought(place or place_of(call.layer, call.hidden), call, seq)
        made = _shortened(setup, here, seq, None)
        return twin.pending, made.mask, made.rotary, made.position_ids

    found = seq.once(key, make, twin.order, twin.shift, of)
    twin.pending, call.mask, call.rotary, call.position_ids = found
    return call


def _budget(setup: Setup, i: int, seq: Sequence, counts: tuple[int, ...]) -> tuple[int, ...]:
    """How many of the `counts` tokens that are left stay at the stop at layer `i`."""
    stop, spared = setup.stops[i], setup.spared(seq.counts)
    return tuple(
        have if left else min(stop.count(n), have)
        for n, have, left in zip(seq.counts, counts, spared, strict=True)
    )


def _asked_next(setup: Setup, i: int, seq: Sequence) -> bool:
    """Whether the strategy will be asked at layer `i`: where all stay, nothing is measured."""
    if i not in setup.stops or setup.grouped:
        return False
    counts = seq.counts if seq.layout is None else seq.layout.counts
    return setup.strategy.watches or _budget(setup, i, seq, counts) != counts


def _decide(setup: Setup, call: LayerCall, seq: Sequence, cached: Any) -> None:
    """Asks the strategy at a stop, and moves the sequence to the layout of its plan."""
    i, layer = call.index, call.layer
    before = seq.layout or seq.once("first", seq.first)
    if setup.grouped:
        _merge_as_the_tower(seq, i, before)
        return
    capture: Capture | None = seq.evidence.pop(i, None)
    budget = _budget(setup, i, seq, before.counts)
    stays = budget == before.counts
    if stays:
        keep = torch.arange(before.visual.shape[1], device=seq.device).expand_as(before.visual)
        seq.plans[i] = Plan(keep, before.visual_valid)
        seq.kept[i] = (before.origin, before.visual_valid, budget)
        if not setup.strategy.watches:
            return
    # gradients flow through the layer's own projections, never through those of a score
    grads = torch.is_grad_enabled()
    handing = not (stays or grads or layer.training or torch.compiler.is_compiling())
    with torch.no_grad():
        past = _past(cached, seq)
        view = _view(setup, call, seq, seq.layout, cached, past)
        whole = compiled(setup.decoder, layer)
        fits = not whole and Handover.fits(setup.adapter.key_projection(layer))
        view.handing = handing and fits
        found = evidence(view, capture, setup.strategy.needs, setup.decoder)
        learning = grads and (layer.training or setup.strategy.training)
        tokens = _tokens(setup, call, seq, before, found, learning)
        plan = setup.strategy.plan(tokens, budget)
    if stays:
        return
    _check(setup.strategy, plan, budget, i, tokens.valid)
    seq.layout, seq.steps[i] = advance(seq, before, plan, budget)
    if view.projected is not None and not plan.changes:
        keys = rows_of(view.projected, seq.steps[i].rows)
        seq.evidence[i] = Handover(setup.adapter.key_projection(layer), keys)
    seq.plans[i] = plan.detach()
    seq.kept[i] = (seq.layout.origin, seq.layout.visual_valid, budget)


def _tokens(
    setup: Setup,
    call: LayerCall,
    seq: Sequence,
    before: Layout,
    found: Mapping[str, Callable[[], Tensor]],
    learning: bool,
) -> Tokens:
    """What a strategy is given at a stop, without gradients to the model."""
    assert seq.places is not None  # set with `seq.visual`
    return Tokens(
        hidden=rows_of(call.hidden, before.visual),
        valid=before.visual_valid,
        origin=before.origin,
        places=seq.places.gather(before.origin),
        counts=before.counts,
        original=max(seq.counts),
        layer=call.index,
        seed=setup.seed,
        separators=seq.separators,
        learning=learning,
        evidence=found,
    )


def _merge_as_the_tower(seq: Sequence, i: int, before: Layout) -> None:
    """Tokens that became one in the vision tower become one here."""
    plan, budget = inside.plan(seq.pictures, before.visual_valid)
    if budget == before.counts:
        plan = Plan(plan.keep, before.visual_valid)
        seq.kept[i] = (before.origin, before.visual_valid, budget)
    else:
        seq.layout, seq.steps[i] = advance(seq, before, plan, budget)
        seq.kept[i] = (seq.layout.origin, seq.layout.visual_valid, budget)
    seq.plans[i] = plan


def _check(
    strategy: Strategy, plan: Plan, budget: tuple[int, ...], layer: int, there: Tensor
) -> None:
    """Refuses a plan of another size than its budget, or of tokens that are none.

    Shapes need no host sync. Which entries are valid, and what they are, is looked at on the
    device; an accelerator says it late, with its next sync. `there` (b, v) is False where a row
    has no token.
    """
    b, k = plan.keep.shape
    even = len(set(budget)) <= 1
    name = type(strategy).__name__
    if (b, k) != (len(budget), max(budget)) or (plan.valid is None and not even):
        raise ValueError(
            f"{name} kept {k} tokens of {b} samples at layer {layer}, but the "
            f"budget was {list(budget)}: a plan keeps exactly its budget, with `valid` where "
            "samples differ"
        )
    if plan.keep.dtype != torch.long:
        raise ValueError(
            f"{name} kept tokens by numbers of {plan.keep.dtype} at layer {layer}: indices are of "
            "torch.long"
        )
    if plan.valid is not None:
        exact = (plan.valid.sum(dim=1) == torch.tensor(budget, device=plan.valid.device)).all()
        _assert(
            exact,
            f"{name} marked more or fewer kept tokens as valid at layer {layer} than its budget, "
            f"{list(budget)}: a plan keeps exactly its budget",
        )
    if k:
        _assert(
            _ascends(plan, there),
            f"{name} kept at layer {layer} what is no token, one token twice, or tokens in another "
            f"order than they stand in: `keep` ascends, from 0 to {there.shape[1] - 1}",
        )


def _ascends(plan: Plan, there: Tensor) -> Tensor:
    """Whether every kept index is of a token, and larger than the one before it."""
    counts = torch.ones_like(plan.keep, dtype=torch.bool) if plan.valid is None else plan.valid
    known = (plan.keep >= 0) & (plan.keep < there.shape[1])
    real = known & there.gather(1, plan.keep.clamp(0, there.shape[1] - 1))
    highest = torch.where(counts, plan.keep, -1).cummax(dim=1).values
    before = torch.nn.functional.pad(highest[:, :-1], (1, 0), value=-1)
    return (~counts | (real & (plan.keep > before))).all()


def _assert(holds: Tensor, said: str) -> None:
    try:
        torch._assert_async(holds, said)
    except RuntimeError as error:  # on a CPU, where nothing has to be waited for
        raise ValueError(said) from error


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
    call: LayerCall,
    seq: Sequence,
    layout: Layout | None,
    cached: Any,
    past: tuple[Tensor, Tensor] | None,
) -> LayerView:
    shift = getattr(cached, "shift", None)
    tables = setup.adapter.tables(call.layer, rotary(setup, call, seq, layout, shift)[0])
    whole = layout or seq.once("first", seq.first)
    hidden = call.hidden.detach()
    return LayerView(setup.adapter, seq, call.layer, whole, hidden, tables, call.mask, past)


def _shortened(setup: Setup, call: LayerCall, seq: Sequence, layout: Layout | None) -> LayerCall:
    """Mask, rotary embedding, position ids and cache bookkeeping of the tokens that are left."""
    ragged = layout is not None and layout.valid is not None
    twin = short(call.cache, call.index) if call.cache is not None else None
    shift = twin.shift if twin is not None else None
    tables, ids, shift = rotary(setup, call, seq, layout, shift)
    mask = call.mask
    kind = seq.once("kind", lambda: _kind(setup.decoder))
    if twin is not None:
        ragged = ragged or twin.ragged
        twin.pending = Pending(seq.length, None, ragged, shift)
    if layout is not None or mask is not None or ragged or seq.length > 1:
        queries = seq.order(layout)
        keys = queries if twin is None else _stored(twin, seq, queries)
        if twin is not None and twin.pending is not None and layout is not None:
            twin.pending.order = keys
        total = seq.start + seq.length
        given = mask
        mask = seq.once(
            ("mask", id(given), id(queries), id(keys), ragged),
            lambda: gathered(
                given,
                queries,
                keys,
                start=seq.start,
                total=total,
                ragged=ragged,
                kind=kind,
                dtype=call.hidden.dtype,
            ),
            given,
            keys,
        )
    if "flash" in kind:
        ids = None  # gaps between positions would be read as the borders of packed sequences
    elif ids is None:
        ids = call.position_ids
    return replace(call, mask=mask, rotary=tables, position_ids=ids)


def _stored(twin: ShortLayer, seq: Sequence, queries: Tensor) -> Tensor:
    """(b, k) logical order of the keys that the layer will hold; one tensor for a whole stage."""
    key = ("stored", id(twin.order), twin.seen, twin.tail, id(queries))

    def make() -> Tensor:
        if not twin.seen:
            return queries
        return torch.cat([twin.full_order(seq.batch, seq.device), queries], dim=1)

    return seq.once(key, make, twin.order)


def _kind(decoder: Part) -> str:
    return str(getattr(decoder.config, "_attn_implementation", "sdpa"))
