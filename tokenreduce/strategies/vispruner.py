"""VisPruner: beyond text-visual attention, section 4 of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import blocks, candidates, dense, select
from tokenreduce.strategy import Positions, Strategy, strategies
from tokenreduce.tokens import Plan, Tokens, gather

ROUND = 8
"""Tokens that leave in one round."""
LISTED = 32
"""Tokens most alike that are listed for each, of more than can all be held."""
HALVINGS = 6
"""Rounds in which a queue of fewer than two rounds' tokens is gone, and one for a count rounded."""

PAPER = Paper(
    key="zhang2025beyond",
    title="Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning "
    "in VLMs",
    authors="Zhang, Qizhe and Cheng, Aosong and Lu, Ming and Zhang, Renrui and Zhuo, Zhiyong "
    "and Cao, Jiajun and Guo, Shaobo and She, Qi and Zhang, Shanghang",
    year=2025,
    arxiv="2412.01818",
    venue="Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)",
    code="Theia-4869/VisPruner, Apache-2.0",
)


@strategies.register("vispruner")
@dataclass
class VisPruner(Strategy):
    """Keep important tokens and, of the others, those that are least alike.

    Important are the tokens that the vision tower's class token attends to most: the share
    `important` of the budget. The others form a queue, most attended first. Round by round
    every second of them is held against those between, by the cosine of the tower's features, and
    the eight most alike to one of these leave; the queue goes on with those that were held, most
    alike first, and then the others. The question plays no part, and the tokens of all pictures of
    a sample share its budget.

    As every round splits the queue anew, one swap of two nearly equal scores changes much of what
    is kept: expect other tokens from another device or precision. Deviation from the original: of
    an odd number the longer half loses tokens (there an error is raised). Where tokens end rows,
    the queue shrinks to the share of the budget that separators leave.

    Raises:
        ValueError: a share outside 0 to 1.
    """

    important: float = 0.5
    """Share of the budget that attention gives out; diversity has the rest."""

    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "tower_features"})
    positions: ClassVar[Positions] = "compact"
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top of the class token's attention, and of the rest those that are least alike"
    )
    cost: ClassVar[str] = (
        "O(v² d), and O(v²) in each of (v - k) / 8 rounds; of more than 4,096 tokens a round "
        "is O(v) and waits for the device; memory O(v d), O(v²) up to that number"
    )

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
        # after the important ones, in the order of attention; what is no picture lies last
        index = torch.arange(order.shape[1], device=order.device) + first
        queue = order.gather(1, index % order.shape[1])
        size = (picture.sum(dim=1, keepdim=True) - first).clamp(min=0)
        sizes = [(n - m, k - m) for n, k, m in zip(tokens.counts, budget, important, strict=True)]
        x = tokens["tower_features"]
        # the host does not know how many of a sample's tokens are separators: with some of them a
        # queue may be shorter than its bound, and lose less than eight in its last rounds
        spare = HALVINGS if tokens.separated else 0
        diverse = _diverse(x, queue, size, (limit - first).clamp(min=0), sizes, spare)
        chosen = (rank < first) | diverse
        return select(chosen * 2.0 * rank.shape[1] - rank, tokens, budget)

    def scheduler(self) -> Scheduler:
        """Before the language model, to a third: 192 of LLaVA-1.5's 576."""
        return Single(layer=0, keep=1 / 3)


def _diverse(
    x: Tensor,
    queue: Tensor,
    size: Tensor,
    target: Tensor,
    most: list[tuple[int, int]],
    spare: int,
) -> Tensor:
    """(b, v) True at the tokens that are left when queues have shrunk to `target`.

    Args:
        x: (b, v, d) features, whose cosine is the likeness of two tokens.
        queue: (b, v) tokens, of which the first `size` (b, 1) are in the queue.
        size: how many there are.
        target: (b, 1) how many shall be left.
        most: per sample an upper bound of both, known on the host.
        spare: rounds beyond those of the bounds; a queue that has shrunk loses nothing more.
    """
    alike = None
    size = torch.where(target > 0, size, 0)
    most = [(n if k > 0 else k, k) for n, k in most]
    while (rounds := any(n > k for n, k in most)) or spare:
        spare -= not rounds
        width = max(n for n, _ in most)
        if width < 2:
            break
        at = torch.arange(width, device=queue.device)
        alike = _likeness(alike, x, queue, width, size)
        held, others = queue[:, :width:2], queue[:, 1:width:2]
        waits, stays = at[::2] < size, at[1::2] < size
        other = torch.zeros_like(queue, dtype=torch.bool).scatter(1, others, stays)
        near = alike.most(held, waits, other).masked_fill(~waits, float("-inf"))
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


def _likeness(
    before: Likeness | None, x: Tensor, queue: Tensor, width: int, size: Tensor
) -> Likeness:
    """That of all tokens, and once more where there are many, whenever the queue has halved."""
    v = queue.shape[1]
    if before is None and dense(v):
        every = torch.arange(v, device=queue.device).expand_as(queue)
        return Likeness(x, every, torch.ones_like(every, dtype=torch.bool))
    if before is not None and (
        before.whole is not None or (width > before.width // 2 and not dense(width))
    ):
        return before
    return Likeness(x, queue[:, :width], torch.arange(width, device=queue.device) < size)


class Likeness:
    """Who is most like whom among the tokens of a queue; the queue may lose some meanwhile.

    Of few tokens all pairs are held. Of many, every token's `LISTED` most alike are: as long
    as half of the tokens are left, one of these almost always is among those it is held against.

    Tokens of the same patch must tie wherever they are computed, in any batch: products are summed
    in fp64, where there is any, and then rounded.

    Args:
        x: (b, v, d) features of all tokens.
        among: (b, w) the tokens of the queue.
        there: (b, w) which entries of `among` count.
    """

    def __init__(self, x: Tensor, among: Tensor, there: Tensor) -> None:
        wide = x if x.device.type == "mps" else x.double()
        self.among, self.width = among, among.shape[1]
        self.unit = normalize(gather(wide, among), dim=-1)
        place = torch.arange(self.width, device=x.device).expand_as(among)
        self.place = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        self.place.scatter_(1, among, place)
        self.whole = self._products(self.unit) if dense(self.width) else None
        if self.whole is None:
            self.value, self.listed = self._lists(there)

    def most(self, held: Tensor, waits: Tensor, other: Tensor) -> Tensor:
        """(b, n) the largest likeness of each token `held` (b, n) to one of the `other` (b, v).

        Where it does not wait (b, n), any number.
        """
        row, other = self.place.gather(1, held), other.gather(1, self.among)
        if self.whole is not None:
            # whole rows, which lie together, are read faster than single pairs
            sample = torch.arange(len(row), device=row.device)[:, None]
            return self.whole[sample, row].masked_fill_(~other[:, None], -2.0).amax(dim=2)
        listed, value = gather(self.listed, row), gather(self.value, row)
        met = other.gather(1, listed.flatten(1)).view_as(listed)
        near = value.masked_fill(~met, -2.0).amax(dim=2)
        for i, missed in enumerate(waits & ~met.any(dim=2)):
            rest = missed.nonzero()[:, 0]  # sync: how many rows must be made
            for part in blocks(len(rest), self.width):
                made = self._products(self.unit[i : i + 1, row[i, rest[part]]], slice(i, i + 1))
                near[i, rest[part]] = made.masked_fill(~other[i], -2.0).amax(dim=2)[0]
        return near

    def _products(self, x: Tensor, samples: slice = slice(None)) -> Tensor:
        """(b, n, w) likeness of rows `x` (b, n, d) to every token of the queue."""
        return (x @ self.unit[samples].transpose(1, 2)).float()

    def _lists(self, there: Tensor) -> tuple[Tensor, Tensor]:
        """(b, w, m) the likeness of every token to the most alike of the others, and their rows."""
        found = []
        for rows in blocks(self.width, self.width):
            near = self._products(self.unit[:, rows]).masked_fill(~there[:, None], -2.0)
            found.append(near.topk(LISTED, dim=2))
        value, listed = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return value, listed
