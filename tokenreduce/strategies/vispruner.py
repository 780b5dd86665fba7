"""VisPruner: beyond text-visual attention (arXiv 2412.01818, ICCV 2025), section 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenreduce.choice import candidates
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Positions, Strategy, select, strategies
from tokenreduce.tokens import Plan, Tokens

ROUND = 8
"""Tokens that leave in one round."""
HALVINGS = 6
"""Rounds in which a queue of fewer than two rounds' tokens is gone, and one for a count rounded."""


@strategies.register("vispruner")
@dataclass
class VisPruner(Strategy):
    """Keep important tokens and, of the others, those that are least alike.

    Important are the tokens that the vision tower's class token attends to most: the share
    `important` of the budget. The others stand in a queue, most attended first. Round by round
    every second of them is held against those between, by the cosine of the tower's features, and
    the eight most alike to one of these leave; the queue goes on with those that were held, most
    alike first, and then the others. The question plays no part, and the tokens of all pictures of
    a sample share its budget. Cost: O(v² d) once, O(v²) in each of (v - k) / 8 rounds.

    As every round splits the queue anew, one swap of two nearly equal scores changes much of what
    is kept: expect other tokens from another device or precision. Deviation from the original: of
    an odd number the longer half loses tokens (there an error is raised). Where tokens end rows,
    the queue shrinks to the share of the budget that separators leave.

    Raises:
        ValueError: a share outside 0 to 1.
    """

    important: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "tower_features"})
    positions: ClassVar[Positions] = "compact"
    paper: ClassVar[str] = "arXiv 2412.01818"

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1:
            raise ValueError(f"important={self.important} is not a share: give 0 to 1")

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The important tokens, then the diverse ones, then whatever the budget still has."""
        picture = candidates(tokens)
        attention = tokens["class_attention"].mean(dim=1).masked_fill(~picture, float("-inf"))
        order = attention.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)

        important = [int(k * self.important) for k in budget]
        first, limit = (torch.tensor(x, device=order.device)[:, None] for x in (important, budget))
        if tokens.separated:  # a share of the budget is theirs
            total = torch.tensor(tokens.counts, device=order.device)[:, None]
            limit = limit * picture.sum(dim=1, keepdim=True) // total.clamp(min=1)
        # behind the important ones, in the order of attention; what is no picture stands last
        index = torch.arange(order.shape[1], device=order.device) + first
        queue = order.gather(1, index % order.shape[1])
        size = (picture.sum(dim=1, keepdim=True) - first).clamp(min=0)
        sizes = [(n - m, k - m) for n, k, m in zip(tokens.counts, budget, important, strict=True)]
        alike = _alike(tokens["tower_features"])
        # the host does not know how many of a sample's tokens are separators: with some of them a
        # queue may be shorter than its bound, and lose less than eight in its last rounds
        spare = HALVINGS if tokens.separated else 0
        diverse = _diverse(alike, queue, size, (limit - first).clamp(min=0), sizes, spare)
        chosen = (rank < first) | diverse
        return select(chosen * 2.0 * rank.shape[1] - rank, tokens, budget)

    def scheduler(self) -> Scheduler:
        """Before the language model, to a third: 192 of LLaVA-1.5's 576."""
        return Single(layer=0, keep=1 / 3)


def _alike(x: Tensor) -> Tensor:
    """(b, v, v) cosine of every pair of rows of `x` (b, v, d).

    Tokens of the same patch must tie wherever they are computed, in any batch: products are summed
    in fp64, where there is any, and then rounded.
    """
    wide = x if x.device.type == "mps" else x.double()
    unit = normalize(wide, dim=-1)
    return (unit @ unit.transpose(1, 2)).float()


def _diverse(
    likeness: Tensor,
    queue: Tensor,
    size: Tensor,
    target: Tensor,
    most: list[tuple[int, int]],
    spare: int,
) -> Tensor:
    """(b, v) True at the tokens that are left when queues have shrunk to `target`.

    Args:
        likeness: (b, v, v) of every two tokens.
        queue: (b, v) tokens, of which the first `size` (b, 1) are in the queue.
        size: how many there are.
        target: (b, 1) how many shall be left.
        most: per sample an upper bound of both, known on the host.
        spare: rounds beyond those of the bounds; a queue that has shrunk loses nothing more.
    """
    sample = torch.arange(len(queue), device=queue.device)[:, None]
    size = torch.where(target > 0, size, 0)
    most = [(n if k > 0 else k, k) for n, k in most]
    while (rounds := any(n > k for n, k in most)) or spare:
        spare -= not rounds
        width = max(n for n, _ in most)
        if width < 2:
            break
        at = torch.arange(width, device=queue.device)
        held, others = queue[:, :width:2], queue[:, 1:width:2]
        waits, stays = at[::2] < size, at[1::2] < size
        # whole rows, which lie together, are read faster than single pairs
        other = torch.zeros_like(queue, dtype=torch.bool).scatter(1, others, stays)
        near = likeness[sample, held].masked_fill_(~other[:, None], -2.0).amax(dim=2)
        near = near.masked_fill(~waits, float("-inf"))
        held = held.gather(1, near.argsort(dim=1, descending=True, stable=True))
        leaving = (size - target).clamp(0, ROUND).minimum(waits.sum(dim=1, keepdim=True))
        left = torch.cat([waits & (at[: held.shape[1]] >= leaving), stays], dim=1)
        front = torch.cat([held, others], dim=1).gather(
            1, (~left).long().argsort(dim=1, stable=True)
        )
        queue = torch.cat([front, queue[:, width:]], dim=1)
        size = size - leaving
        most = [(max(n - ROUND, n // 2, k) if n > k else n, k) for n, k in most]
    left = torch.arange(queue.shape[1], device=queue.device) < size
    return torch.zeros_like(left).scatter(1, queue, left)
