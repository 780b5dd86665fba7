"""Pieces that several methods share: who is like whom, and choices made one token at a time.

Shapes: b samples, v visual tokens, n picks, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenreduce.tokens import Plan, Tokens, keep_from_mask


def candidates(tokens: Tokens) -> Tensor:
    """(b, v) True at the tokens that carry picture: neither filler nor separators."""
    return tokens.valid & ~tokens.places.separator


def kept(plan: Plan, tokens: Tokens) -> Tensor:
    """(b, v) True at the tokens that `plan` keeps."""
    b, v = tokens.valid.shape
    spare = torch.zeros(b, v + 1, dtype=torch.bool, device=plan.keep.device)
    index = plan.keep if plan.valid is None else torch.where(plan.valid, plan.keep, v)
    return spare.scatter(1, index, True)[:, :v]


def packed(mask: Tensor, tokens: Tokens, budget: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """`keep` and `valid` of a plan that keeps `mask` (b, v), exactly the budget of every sample."""
    counts = [min(k, n) for k, n in zip(budget, tokens.counts, strict=True)]
    keep, valid = keep_from_mask(mask, max(counts, default=0))
    return keep, None if len(set(counts)) <= 1 else valid


def elsewhere(tokens: Tokens, index: Tensor) -> Tensor:
    """(b, v, n) True where a token is of another picture (or frame, or tile) than the `index`-th.

    `index` is (b, n): which tokens these are.
    """
    grid = tokens.places.grid
    return grid[:, :, None] != grid.gather(1, index)[:, None]


def cosine(x: Tensor) -> Tensor:
    """(b, v, v) cosine of every pair of rows of `x` (b, v, d), in fp32.

    The same number both ways, to the bit, so that pairs tie wherever they are computed.
    """
    unit = normalize(x.detach().float(), dim=-1)
    product = unit @ unit.transpose(1, 2)
    return (product + product.transpose(1, 2)) / 2


def one_by_one(
    first: Tensor, among: Tensor, n: int, after: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(b, v) scores that rank tokens in the order in which they are picked, the unpicked last.

    The token with the highest value is picked; then `after(pick, values)`, with `pick` (b,) the
    index of that token, says what every token is worth from now on. Nobody is picked twice. Who
    comes first does not depend on `n`: samples with smaller budgets read the same order.

    Args:
        first: (b, v) what every token is worth at the beginning.
        among: (b, v) who may be picked.
        n: number of picks; samples with fewer tokens stop earlier.
        after: the values of the next step.
    """
    values, open_ = first, among
    scores = torch.zeros_like(first)
    for step in range(min(n, first.shape[1])):
        ranked = values.masked_fill(~open_, float("-inf"))
        pick = ranked.argmax(dim=1)
        place = pick[:, None]
        # where nobody is left the pick is filler, whose score does not matter
        scores = scores.scatter(1, place, scores.gather(1, place).clamp(min=float(n - step)))
        open_ = open_.scatter(1, place, False)
        if step + 1 < n:
            values = after(pick, values)
    return scores


def of_own(scores: Tensor, budget: Sequence[int]) -> Tensor:
    """(b, v) the scores of `one_by_one` for `max(budget)` picks, of each sample's own alone.

    What is picked in a sample because another's budget is larger would decide, where separators
    leave a place over, what the sample has alone.
    """
    own = scores.new_tensor(tuple(budget))[:, None]
    return scores.masked_fill(scores <= max(budget, default=0) - own, 0.0)
