"""Pooling on the image grid: the baseline that merges instead of dropping.

Shapes: b samples, v visual tokens, k kept. All counting is done with scatters: no host sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenreduce.errors import did_you_mean
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import Merge, Plan, Tokens


@strategies.register("pooling")
@dataclass
class Pooling(Strategy):
    """Pool neighbouring tokens of each image on its 2-D grid, to exactly the budget.

    A tile that may keep k tokens is cut into bands of whole rows, about as many as keep its aspect
    ratio, and each band into columns of equal size: on a grid whose sides divide, these are the
    windows of `avg_pool2d` / `max_pool2d` (keep 1/4 pools 2 x 2, 1/9 pools 3 x 3, …). Tiles get
    their share of the budget in proportion to their tokens. Row separators pool among themselves,
    one to a band, and count towards the budget. The middle token of a window gives its position.
    """

    mode: Literal["avg", "max"] = "avg"
    """avg | max"""

    formula: ClassVar[str] = "the mean, or the largest, of each of k windows of the image grid"
    cost: ClassVar[str] = "O(v log v)"
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mode not in ("avg", "max"):
            hint = did_you_mean(self.mode, ("avg", "max"))
            raise ValueError(f"no pooling mode {self.mode!r}{hint} (known: avg, max)")

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Groups of neighbouring tokens, one to every kept place."""
        limit = torch.tensor(budget, device=tokens.origin.device)[:, None]
        window = _windows(tokens, limit)
        mask, group = _slots(window, tokens.valid)
        how: Literal["mean", "max"] = "mean" if self.mode == "avg" else "max"
        return Plan.of(mask, tokens, budget, content=Merge(group, how=how))

    def scheduler(self) -> Scheduler:
        """2 x 2 windows before the first layer."""
        return Single(layer=0, keep=0.25)


def _windows(tokens: Tokens, limit: Tensor) -> Tensor:
    """(b, v) number of each token's window, -1 where it is dropped; `limit` (b, 1) windows each."""
    valid, places = tokens.valid, tokens.places
    sign = places.separator & valid
    patch = valid & ~sign
    tile = _runs(places.grid, valid)
    share = _split(_sizes(tile, valid), limit).gather(1, tile)

    # rows: lines of a tile, numbered within it
    patches, signs = _sizes(tile, patch).gather(1, tile), _sizes(tile, sign).gather(1, tile)
    line = _runs(places.line, valid)
    row = line - _least(tile, line).gather(1, tile)
    rows = (_most(tile, row.masked_fill(~valid, 0)).gather(1, tile) + 1).clamp(min=1)
    columns = patches / rows + (signs > 0).float()
    wish = (share * rows / columns.clamp(min=1)).sqrt().round().long()
    bands = torch.minimum(wish.clamp(min=1), rows)
    first = tile * (tokens.valid.shape[1] + 1)
    for _ in range(2):
        band = _runs(first + row * bands // rows, valid)
        # separators: one to a band, where the budget leaves a patch next to them
        signed = (_sizes(band, sign) > 0).long()
        per_tile = _sizes(_first_of(band, tile), None, weight=signed).gather(1, tile)
        kept_signs = per_tile < share
        left = share - torch.where(kept_signs, per_tile, 0)
        # too few patches to fill the budget next to these separators: every row is a band
        unfilled = left > patches
        bands = torch.where(unfilled, rows, bands)

    # columns: a band's share of its tile's patches, cut in column order
    in_band = _sizes(band, patch)
    columns_of = _split_within(in_band, _first_of(band, tile), patches, left, tile)
    size, cuts = in_band.gather(1, band), columns_of.gather(1, band)
    chunk = _rank(band, places.column, places.line, patch) * cuts // size.clamp(min=1)
    base = band * 2 * valid.shape[1]
    window = torch.where(patch & (cuts > 0), base + 1 + chunk, -1)
    window = torch.where(sign & kept_signs, base, window)

    # a tile of hardly more than separators: cut in reading order, whatever the tokens are
    number = _sizes(tile, valid).gather(1, tile)
    position = torch.arange(valid.shape[1], device=valid.device).expand_as(tile)
    place = (position - _least(tile, position).gather(1, tile)) * share // number.clamp(min=1)
    return torch.where(unfilled, _least(tile, base).gather(1, tile) + place, window)


def _slots(window: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(b, v) which tokens stand for their windows, and the slot of every token's window."""
    v = window.shape[1]
    position = torch.arange(v, device=window.device).expand_as(window)
    alive = valid & (window >= 0)
    # tokens sorted by window; a window's middle member stands for it
    order = torch.where(alive, window, window.new_full((), 4 * v * v + 4 * v)).argsort(
        dim=1, stable=True
    )
    label = _runs(window.gather(1, order), alive.gather(1, order))
    start = _least(label, position)
    size = _sizes(label, alive.gather(1, order))
    middle = (start + (size - 1) // 2).gather(1, label)
    chosen = (middle == position) & alive.gather(1, order)
    mask = torch.zeros_like(alive).scatter_(1, order, chosen)
    # the slot of a window is the rank of its middle token in reading order
    slot_at = mask.long().cumsum(dim=1) - 1
    middle_token = order.gather(1, middle.clamp(0, v - 1))
    slot = slot_at.gather(1, middle_token).masked_fill(~alive.gather(1, order), -1)
    return mask, torch.full_like(window, -1).scatter_(1, order, slot)


def _runs(key: Tensor, valid: Tensor) -> Tensor:
    """(b, v) number of the run of equal `key`s that each token is in; filler joins the last run."""
    change = (key[:, 1:] != key[:, :-1]) & valid[:, 1:]
    return torch.nn.functional.pad(change.long().cumsum(dim=1), (1, 0))


def _sizes(group: Tensor, of: Tensor | None, weight: Tensor | None = None) -> Tensor:
    """(b, v) how many tokens of `of` each group has (or the sum of `weight`)."""
    x = torch.ones_like(group) if weight is None else weight
    x = x if of is None else x * of.long()
    return torch.zeros_like(group).scatter_add(1, group, x)


def _least(group: Tensor, x: Tensor) -> Tensor:
    """(b, v) the smallest `x` in each group."""
    return x.new_full(x.shape, torch.iinfo(x.dtype).max).scatter_reduce(1, group, x, "amin")


def _most(group: Tensor, x: Tensor) -> Tensor:
    """(b, v) the largest `x` in each group."""
    return x.new_zeros(x.shape).scatter_reduce(1, group, x, "amax")


def _first_of(group: Tensor, parent: Tensor) -> Tensor:
    """(b, v) the parent of each group, by group number (0 for numbers that do not occur)."""
    return torch.zeros_like(parent).scatter(1, group, parent)


def _split(sizes: Tensor, limit: Tensor) -> Tensor:
    """(b, v) each group's part of `limit` (b, 1): in proportion, exact in sum, never above size."""
    total = sizes.sum(dim=1, keepdim=True).clamp(min=1)
    upto = sizes.cumsum(dim=1) * limit // total
    return torch.diff(upto, dim=1, prepend=torch.zeros_like(upto[:, :1]))


def _split_within(
    sizes: Tensor, parent: Tensor, total: Tensor, limit: Tensor, tile: Tensor
) -> Tensor:
    """(b, v) each band's part of its tile's `limit`, in proportion, exact in sum per tile.

    `total` and `limit` are given per token (b, v), with the tile that each token is in.
    """
    per_tile = _first_of(tile, limit), _first_of(tile, total)
    limit, total = (x.gather(1, parent) for x in per_tile)
    upto = sizes.cumsum(dim=1)
    exists = sizes > 0
    before = upto - sizes
    start = _least(parent, torch.where(exists, before, torch.iinfo(before.dtype).max)).gather(
        1, parent
    )
    low = torch.where(exists, before - start, 0) * limit // total.clamp(min=1)
    high = torch.where(exists, upto - start, 0) * limit // total.clamp(min=1)
    return high - low


def _rank(band: Tensor, column: Tensor, line: Tensor, of: Tensor) -> Tensor:
    """(b, v) rank of each token of `of` within its band, by column and then row."""
    v = band.shape[1]
    far = torch.iinfo(band.dtype).max
    by_line = torch.where(of, line, far).argsort(dim=1, stable=True)
    by_column = column.gather(1, by_line).argsort(dim=1, stable=True)
    order = by_line.gather(1, by_column)
    key = torch.where(of, band, v)
    order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    position = torch.arange(v, device=band.device).expand_as(band)
    rank = torch.zeros_like(band).scatter(1, order, position)
    return rank - _least(band, torch.where(of, rank, far)).gather(1, band)
