"""One forward pass, in two coordinate systems: logical (the caller's) and physical (what is left).

A `Sequence` travels through the model's own keyword arguments from the decoder to its layers, so
that nothing has to be kept on modules. Shapes: b samples, l logical tokens of this pass,
p physical tokens, v visual tokens, r asking tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tokenreduce.geometry import Picture
from tokenreduce.tokens import Places, Plan, keep_from_mask

T = TypeVar("T")
M = TypeVar("M")


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


@dataclass
class Sequence:
    """What one forward pass knows about its tokens.

    Attributes:
        batch, length: b and l; `start` is the logical index of the first token (cached before it).
        visual: (b, l) True at visual tokens; None in a pass without any.
        real: (b, l) False at padding; None when there is none.
        asking: (b, r) index of the tokens whose attention scores the visual ones, and
            `asking_valid` (b, r), False where a sample has fewer.
        question: (b, l) False from the sample's first answer on, which no choice may depend on;
            None without labels.
        counts: visual tokens per sample; `texts`: other real tokens per sample (host).
        places: where the visual tokens stand; `pictures` the same per sample, on the host.
        separators: the largest number of separator tokens in a sample (host).
        restarts: whether the positions of a row fall, as those of packed prompts do (host).
        text_first: whether every sample begins with a real text token (host).
        layouts: per layer, once its turn has come; a recomputed layer finds its own again.
        plans: the strategy's decision at every stop; `steps` what it does to the hidden states;
            `kept` the origins (b, k) of what is left, their validity, and the counts.
        embedded: (b, l, d) the input of layer 0, where a strategy reads it.
        evidence: captures that run for a coming stop, and what is handed to the layer of a stop.
        cache: the KV cache that the layers were given, once one was.
    """

    batch: int
    length: int
    start: int
    device: torch.device
    visual: Tensor | None = None
    real: Tensor | None = None
    asking: Tensor | None = None
    asking_valid: Tensor | None = None
    question: Tensor | None = None
    counts: tuple[int, ...] = ()
    texts: tuple[int, ...] = ()
    places: Places | None = None
    pictures: list[list[Picture]] = field(default_factory=list)
    separators: int = 0
    restarts: bool = False
    text_first: bool = False
    layouts: dict[int, Layout | None] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    kept: dict[int, tuple[Tensor, Tensor, tuple[int, ...]]] = field(default_factory=dict)
    evidence: dict[int, Any] = field(default_factory=dict)
    layout: Layout | None = None
    embedded: Tensor | None = None
    cache: Any = None
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def move(self, device: torch.device) -> None:
        """Follows the layers to another device, with everything that later ones need."""
        if device == self.device:
            return
        self.device = device
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Places | Layout):
                setattr(self, name, moved(value, device))
        self.memo.clear()  # made there, and found by the ids of what was there

    def once(self, key: Hashable, make: Callable[[], T], *alive: Any) -> T:
        """`make()`, computed once per pass; `alive` are the objects whose ids are in `key`."""
        if key not in self.memo:
            self.memo[key] = (make(), alive)
        value: T = self.memo[key][0]
        return value

    def first(self) -> Layout:
        """The layout before any stop: everything is present."""
        assert self.visual is not None  # the engine asks only in passes with visual tokens
        index, valid = keep_from_mask(self.visual, max(self.counts))
        places = torch.arange(index.shape[1], device=index.device).expand_as(index)
        return Layout(None, None, index, valid, places, self.counts)

    def embedding(self, kind: str) -> Tensor:
        """(b, n, d) the input of layer 0 at `"visual"` or `"text"` tokens, zeros at filler.

        Text is that of the question.
        """
        assert self.embedded is not None  # kept where a strategy reads it
        assert self.visual is not None
        mask, counts = self.visual, self.counts
        if kind == "text":
            mask, counts = ~self.visual, self.texts
            for also in (self.real, self.question):
                mask = mask if also is None else mask & also
        index, valid = keep_from_mask(mask, max(max(counts), 1))
        return rows_of(self.embedded, index).masked_fill(~valid[..., None], 0.0)

    def order(self, layout: Layout | None) -> Tensor:
        """(b, p) absolute logical index of every token of a layout, -1 for filler."""

        def make() -> Tensor:
            if layout is None or layout.index is None:
                return torch.arange(
                    self.start, self.start + self.length, device=self.device
                ).expand(self.batch, -1)
            order = layout.index + self.start
            return order if layout.valid is None else order.masked_fill(~layout.valid, -1)

        return self.once(("order", id(layout)), make, layout)


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
                # filler slots write to a spare row behind the sequence
                slots = torch.where(self.plan.valid, slots, hidden.shape[1])
                hidden = torch.cat([hidden, hidden[:, :1]], dim=1)
            index = slots[..., None].expand(*slots.shape, hidden.shape[-1])
            hidden = hidden.scatter(1, index, merged.to(hidden.dtype))
        return rows_of(hidden, self.rows)


def moved(x: M, device: torch.device) -> M:
    """A tensor on `device`; a tuple or a record of tensors with all of them there."""
    if isinstance(x, Tensor):
        return x.to(device)  # type: ignore[return-value]
    if isinstance(x, tuple) and any(isinstance(part, Tensor) for part in x):
        return tuple(moved(part, device) for part in x)  # type: ignore[return-value]
    if not is_dataclass(x):
        return x
    return replace(x, **{f.name: moved(getattr(x, f.name), device) for f in fields(x)})  # type: ignore[type-var]


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
    elif before.index is None and seq.real is not None:
        alive = seq.real.clone()
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
