"""From scores to kept indices, and pieces that several methods share: likeness, greedy picks.

Public, for authors of methods. Memory grows linearly with the tokens: results for every pair of
more than `DENSE` of them are read in blocks. Shapes: b samples, v visual tokens, n picks, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenreduce.errors import BadOption
from tokenreduce.tokens import Plan, Tokens, gather

DENSE = 4096
"""Tokens of which every pair is held at once; of more, pairs are read in blocks."""

MIXED = 1 << 28
"""Entries of a table of what each kept token contains of every other: a GiB in fp32."""


def dense(v: int) -> bool:
    """Whether every pair of `v` tokens is held at once."""
    return v <= DENSE


def blocks(rows: int, columns: int) -> list[slice]:
    """All of `rows` in slices, each of so many that times `columns` they are DENSE² at most.

    One slice where the whole is no more than that, so that a method is written once.
    """
    step = max(DENSE * DENSE // max(columns, 1), 1)
    return [slice(at, min(at + step, rows)) for at in range(0, max(rows, 1), step)]


def select(scores: Tensor, tokens: Tokens, budget: Sequence[int]) -> Plan:
    """The highest-scored tokens, `budget[i]` of sample i, in reading order.

    Ranking is done in fp32. Separator tokens are not ranked: one stays while its row has a kept
    token, and counts towards the budget. (When the last free place could only open a new row, the
    token of that row stays without its separator, so that the budget is met exactly.)
    """
    counts = [min(k, n) for k, n in zip(budget, tokens.counts, strict=True)]
    ranked = scores.detach().float().nan_to_num(nan=float("-inf"))
    ranked = ranked.masked_fill(~tokens.valid, float("-inf"))
    limit = torch.tensor(counts, device=scores.device)[:, None]
    separator = tokens.places.separator & tokens.valid
    ranked = ranked.masked_fill(separator, float("-inf"))
    order = ranked.argsort(dim=1, descending=True, stable=True)
    if tokens.separated:
        mask = _with_separators(order, separator, tokens, limit)
    else:
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        mask = rank < limit
    return Plan.of(mask, tokens, budget, score=scores)


def _with_separators(order: Tensor, separator: Tensor, tokens: Tokens, limit: Tensor) -> Tensor:
    """(b, v) kept mask of exactly `limit` tokens where separators follow their rows.

    Tokens are admitted in the order of their ranks; the first of a row also pays for the row's
    separator. One place may be left over where the next token would have cost two: it goes to the
    best token of a row that is open already, or else to the next token, without its separator.
    """
    v, line = order.shape[1], tokens.places.line
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(v, device=order.device).expand_as(order)
    )
    rankable = tokens.valid & ~separator

    def first(of: Tensor) -> Tensor:
        """The smallest rank among the `of` tokens of each token's row."""
        ranks = torch.where(of, rank, v)
        # rows are numbered at layer 0: there may be more of them than tokens are left
        rows = ranks.new_full((ranks.shape[0], max(tokens.original, v)), v)
        return rows.scatter_reduce(1, line, ranks, "amin").gather(1, line)

    pays = rankable & (first(rankable) == rank) & (first(separator) < v)
    price = (rankable.long() + pays.long()).gather(1, order)
    admitted = (price.cumsum(dim=1) <= limit) & rankable.gather(1, order)
    mask = torch.zeros_like(admitted).scatter_(1, order, admitted)
    left = limit - torch.where(admitted, price, 0).sum(dim=1, keepdim=True)
    opened = first(mask) < v
    waiting = rankable & ~mask
    queue = torch.where(waiting, torch.where(opened, rank, rank + v), 2 * v)
    extra = torch.zeros_like(mask).scatter_(1, queue.argmin(dim=1, keepdim=True), True)
    return mask | (separator & opened) | (extra & waiting & (left > 0))


def candidates(tokens: Tokens) -> Tensor:
    """(b, v) True at the tokens that carry picture: neither filler nor separators."""
    return tokens.valid & ~tokens.places.separator


def kept(plan: Plan, tokens: Tokens) -> Tensor:
    """(b, v) True at the tokens that `plan` keeps."""
    b, v = tokens.valid.shape
    spare = torch.zeros(b, v + 1, dtype=torch.bool, device=plan.keep.device)
    index = plan.keep if plan.valid is None else torch.where(plan.valid, plan.keep, v)
    return spare.scatter(1, index, True)[:, :v]


def numbered(key: Tensor) -> Tensor:
    """(b, v) the number of each key (b, v) among those that occur in the sample, from 0."""
    values, at = key.sort(dim=1, stable=True)
    number = torch.nn.functional.pad((values.diff(dim=1) > 0).long().cumsum(dim=1), (1, 0))
    return torch.zeros_like(key).scatter(1, at, number[:, : key.shape[1]])


def places_in_order(score: Tensor, among: Tensor) -> Tensor:
    """(b, v) the place of each token in the order of scores, the best first; v outside `among`."""
    order = score.masked_fill(~among, float("-inf")).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    return torch.where(among, rank, score.shape[1])


def empty_mix(name: str, like: Tensor, k: int) -> Tensor:
    """(b, k, v) zeros of the type of `like` (b, v), for a `Mix`.

    Args:
        name: of the strategy, for the refusal.
        like: gives samples, tokens, type and device.
        k: kept tokens.

    Raises:
        ValueError: a table of more than `MIXED` entries for a sample.
    """
    b, v = like.shape
    if k * v > MIXED:
        raise BadOption(
            f"{name} writes down what each of {k:,} kept tokens contains of {v:,}, and such a "
            f"table has {MIXED:,} entries at most: keep {MIXED // v:,} of them or fewer"
        )
    return like.new_zeros(b, k, v)


def other_picture(tokens: Tokens, index: Tensor, rows: slice = slice(None)) -> Tensor:
    """(b, rows, n) True where a token is of another picture (frame, tile) than the one of `index`.

    Args:
        tokens: all of them.
        index: (b, n) the tokens that they are held against.
        rows: which tokens are held against these; all, unless given.
    """
    grid = tokens.places.grid
    return grid[:, rows, None] != grid.gather(1, index)[:, None]


@dataclass(frozen=True)
class Cosines:
    """The cosine of every pair of rows of `x` (b, v, d), in fp32; made by `Cosines.of(x)`.

    Up to `DENSE` rows they are one map. Of more, what is read of it is made when it is read.

    Attributes:
        unit: (b, v, d) rows of length one.
        whole: (b, v, v), or None where there are more.
    """

    unit: Tensor
    whole: Tensor | None

    @classmethod
    def of(cls, x: Tensor) -> Cosines:
        """Those of `x` (b, v, d)."""
        unit = normalize(x.detach().float(), dim=-1)
        return cls(unit, _symmetric(unit, unit) if dense(x.shape[1]) else None)

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Every pair once: rows, columns and their (b, rows, columns) cosines.

        The same number both ways, to the bit, so that pairs tie wherever they are computed. A row
        meets its columns in ascending order.
        """
        v = self.unit.shape[1]
        step = v if self.whole is not None else max(DENSE // 2, 1)
        parts = [slice(at, min(at + step, v)) for at in range(0, v, max(step, 1))]
        for i, rows in enumerate(parts):
            for columns in parts[i:]:
                tile = self.whole
                if tile is None:
                    tile = _symmetric(self.unit[:, rows], self.unit[:, columns])
                yield rows, columns, tile
                if rows != columns:
                    yield columns, rows, tile.transpose(1, 2)

    def to(self, index: Tensor, rows: slice = slice(None)) -> Tensor:
        """(b, rows, n) of every row, or of some `rows`, with those at `index` (b, n)."""
        if self.whole is not None:
            # the same both ways: whole rows, which lie together, are read faster than columns
            sample = torch.arange(len(index), device=index.device)[:, None]
            return self.whole[sample, index][:, :, rows].transpose(1, 2)
        return self.unit[:, rows] @ gather(self.unit, index).transpose(1, 2)


def _symmetric(x: Tensor, y: Tensor) -> Tensor:
    """(b, n, m) products of the rows of `x` and `y`; with `x` and `y` exchanged, the transpose."""
    product = x @ y.transpose(1, 2)
    other = product if x is y else y @ x.transpose(1, 2)
    return (product + other.transpose(1, 2)) / 2


def one_by_one(
    first: Tensor, among: Tensor, n: int, after: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(b, v) scores that rank tokens in the order in which they are picked, the unpicked last.

    The token with the highest value is picked; then `after(pick, values)`, with `pick` (b,) the
    index of that token, returns the scores of all tokens from now on. Without replacement; the
    order does not depend on `n`: samples with smaller budgets read the same one.

    Args:
        first: (b, v) what every token is worth at the beginning.
        among: (b, v) True at the tokens that may be picked.
        n: number of picks; samples with fewer tokens stop earlier.
        after: the values of the next step.
    """
    values, open_ = first, among
    scores = torch.zeros_like(first)
    for step in range(min(n, first.shape[1])):
        ranked = values.masked_fill(~open_, float("-inf"))
        pick = ranked.argmax(dim=1)
        place = pick[:, None]
        # where none is left the pick is filler, whose score does not matter
        scores = scores.scatter(1, place, scores.gather(1, place).clamp(min=float(n - step)))
        open_ = open_.scatter(1, place, False)
        if step + 1 < n:
            values = after(pick, values)
    return scores


def within_own_budget(scores: Tensor, budget: Sequence[int]) -> Tensor:
    """(b, v) the scores of `one_by_one` for `max(budget)` picks, of each sample's own alone.

    What is picked in a sample because another's budget is larger would decide, where separators
    leave a place over, what the sample has alone.
    """
    own = scores.new_tensor(tuple(budget))[:, None]
    return scores.masked_fill(scores <= max(budget, default=0) - own, 0.0)
