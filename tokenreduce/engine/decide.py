"""What happens at a stop: the strategy is asked, and its plan begins another stage.

Shapes: b samples, p physical tokens, v visual tokens, k kept tokens, d width, e head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenreduce.engine.attention import LayerView, same_draws
from tokenreduce.engine.cache import ShortLayer, held
from tokenreduce.engine.call import LayerCall, usable
from tokenreduce.engine.capture import FROM_BEFORE, Capture, KeyReuse, Measures, measures
from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.engine.hooks import compiled
from tokenreduce.engine.positions import rotary
from tokenreduce.engine.sequence import Sequence, Stage, advance, rows_of
from tokenreduce.engine.token_rows import TokenRows
from tokenreduce.engine.tower import bridge
from tokenreduce.strategy import Strategy
from tokenreduce.tokens import Plan, Tokens

Past = tuple[Tensor, Tensor] | None
"""Keys that were cached before a pass, and their logical order (b, p)."""

EMBEDDINGS = frozenset({"embedding", "text_embedding"})
"""Evidence on the input of layer 0, which is then kept for later stops."""


def decide(seq: Sequence, call: LayerCall) -> Stage:
    """The stage that begins at the input of a layer with a stop."""
    config, i, before = seq.config, call.index, seq.stage(call.index)
    capture, seq.capture = seq.capture, None
    layout = before.kept
    if config.grouped:
        return _merge_as_the_tower(seq, i, before)
    budget = config.budget(i, seq.counts, layout.counts)
    stays = budget == layout.counts
    if stays and not config.strategy.observe_only:
        return seq.begin(i, layout, Plan.everything(layout.visual_valid), None)
    # gradients flow through the layer's own projections, never through those of a score
    learning = torch.is_grad_enabled() and (call.layer.training or config.strategy.training)
    handing = not stays and _may_reuse(config, call)
    earlier = None if capture is None else capture.view
    with torch.no_grad():
        view = view_of(seq, before, call)
        view.handing = handing
        found = measures(view, earlier, config.strategy.needs, config.decoder)
        tokens = _tokens(seq, before, call, found, learning)
        plan = config.strategy.plan(tokens, budget)
    if stays:
        return seq.begin(i, layout, Plan.everything(layout.visual_valid), None)
    check_plan(config.strategy, plan, budget, tokens)
    after, step = advance(seq, layout, plan, budget)
    if view.projected is not None and not plan.changes:
        keys = rows_of(view.projected, step.rows)
        if seq.reuse is not None:
            seq.reuse.close()
        seq.reuse = KeyReuse(config.adapter.key_projection(call.layer), keys)
    return seq.begin(i, after, plan.detach(), step)


def capture_for_next(seq: Sequence, stage: Stage, call: LayerCall) -> None:
    """Takes what this layer projects, where the strategy will ask for it at the next one, a stop.

    Where every token stays the strategy is not asked, and nothing is measured.

    Args:
        seq: the pass.
        stage: the tokens that the layer gets.
        call: of the layer, with the hidden states that it gets, and all else as the model gave it.
    """
    wanted = seq.config.strategy.needs & FROM_BEFORE
    if not wanted or not _will_ask(seq, stage, call.index + 1):
        return
    # a score is no part of the loss, and checkpointing counts tensors
    with torch.no_grad(), same_draws(call.layer):
        view = view_of(seq, stage, call)
        watching = not compiled(seq.config.decoder, call.layer)
        seq.capture = Capture(view, wanted, watching=watching)


def view_of(seq: Sequence, stage: Stage, call: LayerCall) -> LayerView:
    """The layer as far as attention is concerned, on the tokens of a stage."""
    adapter, rows, hidden = seq.config.adapter, TokenRows(seq, stage), call.hidden.detach()
    tables = adapter.tables(call.layer, rotary(seq, stage, call)[0])
    return LayerView(adapter, call.layer, rows, hidden, tables, call.mask, _past(seq, call))


def check_plan(strategy: Strategy, plan: Plan, budget: tuple[int, ...], tokens: Tokens) -> None:
    """Refuses a plan of another size than its budget, or of tokens that are none.

    Shapes need no host sync. Which entries are valid, and what they are, is looked at on the
    device; an accelerator says it late, with its next sync.

    Raises:
        ValueError: another number of kept tokens than the budget, or indices that do not ascend.
    """
    b, k = plan.keep.shape
    even, there = len(set(budget)) <= 1, tokens.valid
    name, layer = type(strategy).__name__, tokens.layer
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
            f"order than they are in: `keep` ascends, from 0 to {there.shape[1] - 1}",
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


def _will_ask(seq: Sequence, stage: Stage, layer: int) -> bool:
    """Whether the strategy will be asked at the stop at `layer`."""
    config = seq.config
    if config.grouped:
        return False
    counts = stage.kept.counts
    return config.strategy.observe_only or config.budget(layer, seq.counts, counts) != counts


def _may_reuse(config: EngineConfig, call: LayerCall) -> bool:
    """Whether the layer may be given the key projections that a score makes of it."""
    if torch.is_grad_enabled() or call.layer.training or torch.compiler.is_compiling():
        return False
    whole = compiled(config.decoder, call.layer)
    return not whole and KeyReuse.fits(config.adapter.key_projection(call.layer))


def _tokens(
    seq: Sequence, before: Stage, call: LayerCall, found: Measures, learning: bool
) -> Tokens:
    """What a strategy is given at a stop, without gradients to the model."""
    layout, prompt = before.kept, seq.visual
    return Tokens(
        hidden=rows_of(call.hidden, layout.visual),
        valid=layout.visual_valid,
        origin=layout.origin,
        places=prompt.places.gather(layout.origin),
        counts=layout.counts,
        original=max(prompt.counts),
        layer=call.index,
        seed=seq.config.seed,
        separators=prompt.separators,
        evidence=found,
        learning=learning,
    )


def _merge_as_the_tower(seq: Sequence, i: int, before: Stage) -> Stage:
    """Tokens that became one in the vision tower become one here."""
    layout = before.kept
    plan, budget = bridge.plan(seq.visual.pictures, layout.visual_valid)
    if budget == layout.counts:
        return seq.begin(i, layout, Plan(plan.keep, layout.visual_valid), None)
    after, step = advance(seq, layout, plan, budget)
    return seq.begin(i, after, plan, step)


def _past(seq: Sequence, call: LayerCall) -> Past:
    if not seq.start or not usable(call.cache):
        return None
    cached = held(call.cache, call.index)
    if not cached.is_initialized:
        return None
    keys: Tensor = cached.keys
    if isinstance(cached, ShortLayer):
        return keys, cached.full_order(seq.batch, seq.device)
    order = torch.arange(seq.start - keys.shape[-2], seq.start, device=seq.device)
    return keys, order.expand(seq.batch, -1)
