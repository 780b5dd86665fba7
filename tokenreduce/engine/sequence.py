"""One forward pass, in two coordinate systems: logical (the caller's) and physical (what is left).

A `Sequence` travels through the model's own keyword arguments from the decoder to its layers, so
that nothing has to be kept on modules. It is a row of `Stage`s: the first has every token, and each
stop begins another. Shapes: b samples, l logical tokens of this pass, p physical tokens, v visual
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.engine.prompt import Prompt
from tokenreduce.tokens import Plan, keep_from_mask, on_tensors

T = TypeVar("T")
M = TypeVar("M")

BEGINNING = -1
"""The layer at which the first stage begins: before every one, and no stop."""


class Closable(Protocol):
    """What has put hooks on for a while."""

    def close(self) -> None:
        """Takes them off."""


class Made:
    """What was made of the arguments of layers, found again by their identity.

    A model hands the same tensors to all of its layers (or one set to each kind of layer), so that
    one result serves them all. The arguments are kept: no other object can get their identity.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[Any, tuple[Any, ...]]] = {}

    def once(self, what: Hashable, make: Callable[[], T], *of: Any) -> T:
        """`make()`, called once for `what` of these very objects."""
        key = (what, *map(id, of))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = (make(), of)
        value: T = found[0]
        return value


@dataclass(frozen=True)
class Layout:
    """Which logical tokens are present, left-padded so that the last entry is the last token.

    Attributes:
        index: (b, p) logical index within this pass; None when every token is present.
        valid: (b, p) False for filler; None when there is none.
        visual: (b, v) physical index of the visual tokens that are left, in reading order.
        visual_valid: (b, v) False where a sample has fewer.
        origin: (b, v) their index among the sample's visual tokens at layer 0 of this pass.
        counts: visual tokens per sample (host).
    """

    index: Tensor | None
    valid: Tensor | None
    visual: Tensor
    visual_valid: Tensor
    origin: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """The tokens from one stop to the next, and what all layers between them share.

    Attributes:
        layer: at whose input it begins; `BEGINNING` for the first. Where a model lies on several
            devices, the layers of another one go on with a copy, which begins there.
        order: (b, p) absolute logical index of every token, -1 for filler.
        layout: which tokens these are; None in a pass without visual tokens.
        plan: what the strategy decided at the stop; None for the first stage, and for a copy.
        step: what that does to hidden states; None where every token stayed.
        made: masks, rotary tables and other results that its layers share.
    """

    layer: int
    order: Tensor
    layout: Layout | None = None
    plan: Plan | None = None
    step: Step | None = None
    made: Made = field(default_factory=Made, compare=False)

    @property
    def whole(self) -> bool:
        """Whether every token of the pass is present."""
        return self.layout is None or self.layout.index is None

    @property
    def ragged(self) -> bool:
        """Whether some of its tokens are filler."""
        return self.layout is not None and self.layout.valid is not None

    @property
    def kept(self) -> Layout:
        """The layout of a stage with visual tokens, which every stop has."""
        assert self.layout is not None  # the engine decides in passes with visual tokens alone
        return self.layout

    def to(self, device: torch.device) -> Stage:
        """The tokens on another device; what its layers shared stays where it was."""
        return Stage(self.layer, moved(self.order, device), moved(self.layout, device))


@dataclass
class Sequence:
    """What one forward pass knows about its tokens.

    Attributes:
        batch, length: b and l; `start` is the logical index of the first token (cached before it).
        device: of what is said below; it follows the layers.
        config: what the engine was set to do when the pass began; it holds until the pass ends.
        prompt: what the call said of its visual tokens; None in a pass without any.
        texts: real tokens per sample that are not visual (host).
        stages: from layer to layer, the first one with every token; empty until a layer is called.
        reached: how many layers have been called; activation checkpointing calls some again.
        embedded: (b, l, d) the input of layer 0, where a strategy reads it.
        capture: what runs at the layer before a stop, for the stop.
        reuse: what the layer of a stop is handed of what a score has computed.
        cache: the KV cache that the layers were given, once one was.
        short: in a pass of text alone, the layers whose cache holds fewer keys than tokens were
            seen; others have nothing to do.
        made: results that do not depend on a stage.
    """

    batch: int
    length: int
    start: int
    device: torch.device
    config: EngineConfig
    prompt: Prompt | None = None
    texts: tuple[int, ...] = ()
    stages: list[Stage] = field(default_factory=list)
    reached: int = 0
    embedded: Tensor | None = None
    capture: Any = None
    reuse: Closable | None = None
    cache: Any = None
    short: frozenset[int] = frozenset()
    made: Made = field(default_factory=Made)

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens per sample (host); none in a pass of text alone."""
        return () if self.prompt is None else self.prompt.counts

    @property
    def visual(self) -> Prompt:
        """The prompt of a pass that has visual tokens."""
        assert self.prompt is not None  # the engine decides in such passes alone
        return self.prompt

    @property
    def stops(self) -> list[Stage]:
        """The stages that a stop began."""
        return [stage for stage in self.stages if stage.plan is not None]

    @property
    def reduced(self) -> bool:
        """Whether a stop has changed what the layers after it get."""
        return any(stage.step is not None for stage in self.stages)

    def stage(self, layer: int) -> Stage:
        """The stage that a layer belongs to, also when it is called again."""
        if not self.stages:
            self.stages.append(self._first())
        if self.stages[-1].layer <= layer:
            return self.stages[-1]
        return next(stage for stage in reversed(self.stages) if stage.layer <= layer)

    @property
    def last(self) -> Stage:
        """The stage that the decoder ends with."""
        return self.stages[-1] if self.stages else self.stage(BEGINNING)

    def begin(self, layer: int, layout: Layout, plan: Plan, step: Step | None) -> Stage:
        """A stage that begins at a stop."""
        order = self.stages[-1].order
        if step is not None and layout.index is not None:
            order = layout.index + self.start
            if layout.valid is not None:
                order = order.masked_fill(~layout.valid, -1)
        self.stages.append(Stage(layer, order, layout, plan, step))
        return self.stages[-1]

    def move(self, device: torch.device, layer: int) -> None:
        """Follows the layers from `layer` on to another device, with all that they need."""
        if device == self.device:
            return
        self.device = device
        self.prompt = moved(self.prompt, device)
        self.embedded = moved(self.embedded, device)
        if self.stages and layer >= self.reached:  # one that is called again has its stage there
            self.stages.append(replace(self.stages[-1].to(device), layer=layer))
        self.made = Made()

    def close(self) -> None:
        """Takes off every hook that the pass has put on."""
        for hooks in (self.capture, self.reuse):
            if hooks is not None:
                hooks.close()

    def _first(self) -> Stage:
        """The stage before any stop: every token is present."""
        order = torch.arange(self.start, self.start + self.length, device=self.device)
        order = order.expand(self.batch, -1)
        if self.prompt is None:
            return Stage(BEGINNING, order)
        index, valid = keep_from_mask(self.prompt.visual, max(self.prompt.counts))
        origin = torch.arange(index.shape[1], device=index.device).expand_as(index)
        return Stage(BEGINNING, order, Layout(None, None, index, valid, origin, self.prompt.counts))


@dataclass(frozen=True)
class Step:
    """How one layout becomes the next: where each token comes from, and what kept ones contain."""

    rows: Tensor  # (b, p) index into the tokens of the layout before
    before: Layout
    plan: Plan

    def hidden(self, hidden: Tensor) -> Tensor:
        """(b, p_before, d) -> (b, p, d): drops tokens, after changing those that change."""
        if hidden.device != self.rows.device:  # features that join on another device
            return moved(self, hidden.device).hidden(hidden)
        if self.plan.changes:
            visual = rows_of(hidden, self.before.visual)
            merged = self.plan.merge(visual)
            slots = self.before.visual.gather(1, self.plan.keep)
            if self.plan.valid is not None:
                # filler slots write to a spare row after the sequence
                slots = torch.where(self.plan.valid, slots, hidden.shape[1])
                hidden = torch.cat([hidden, hidden[:, :1]], dim=1)
            index = slots[..., None].expand(*slots.shape, hidden.shape[-1])
            hidden = hidden.scatter(1, index, merged.to(hidden.dtype))
        return rows_of(hidden, self.rows)


def moved(x: M, device: torch.device) -> M:
    """A tensor on `device`; a tuple or a record of tensors with all of them there."""
    there: M = on_tensors(x, lambda tensor: tensor.to(device))
    return there


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """(b, p, d) and (b, k) -> (b, k, d): the numbers of `gather`, copied as whole rows.

    That takes about a tenth of the time on a CPU: one index to a row, not one to a number.
    """
    if x.shape[0] == 1:
        return x.index_select(1, index[0])
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    rows = x.flatten(0, 1).index_select(0, (index + first).flatten())
    return rows.view(*index.shape, *x.shape[2:])


def advance(
    seq: Sequence, before: Layout, plan: Plan, kept: tuple[int, ...]
) -> tuple[Layout, Step]:
    """The layout after `plan`, and the step to it. Padding leaves with the first stop.

    `kept` counts the tokens of each sample that stay, on the host: no sync.
    """
    present = before.index.shape[1] if before.index is not None else seq.length
    alive = torch.ones(seq.batch, present, dtype=torch.bool, device=seq.device)
    if before.valid is not None:
        alive = before.valid.clone()
    elif before.index is None and seq.visual.real is not None:
        alive = seq.visual.real.clone()
    # a spare column takes the writes of filler entries
    spare = torch.cat([alive, alive[:, :1]], dim=1)
    gone = torch.where(before.visual_valid, before.visual, present)
    spare.scatter_(1, gone, False)
    slots = before.visual.gather(1, plan.keep)
    staying = slots if plan.valid is None else torch.where(plan.valid, slots, present)
    spare.scatter_(1, staying, True)
    mask = spare[:, :present]
    totals = [text + k for text, k in zip(seq.texts, kept, strict=True)]
    width = max(totals)
    position = torch.arange(present, device=seq.device).expand_as(mask)
    rows = torch.where(mask, position, -1).sort(dim=1).values[:, present - width :]
    ragged = plan.valid is not None or len(set(totals)) > 1
    valid = rows >= 0 if ragged else None
    rows = rows.clamp(min=0)
    index = rows if before.index is None else before.index.gather(1, rows)
    origin = before.origin.gather(1, plan.keep)
    keep_valid = torch.ones_like(plan.keep, dtype=torch.bool) if plan.valid is None else plan.valid
    # where the surviving visual tokens now stand
    where = torch.arange(width, device=seq.device).expand_as(rows)
    table = position.new_zeros(seq.batch, present + 1).scatter_(
        1, rows if valid is None else torch.where(valid, rows, present), where
    )
    visual = table.gather(1, slots)
    layout = Layout(index, valid, visual, keep_valid, origin, kept)
    return layout, Step(rows, before, plan)
