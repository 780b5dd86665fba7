"""HiRED: attention-guided token dropping in a budget, section 4 of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.checks import share
from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import candidates, numbered, places_in_order, select
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import SPAN, Plan, Tokens

PAPER = Paper(
    key="arif2025hired",
    title="{HiRED}: Attention-Guided Token Dropping for Efficient Inference of "
    "High-Resolution Vision-Language Models",
    authors="Arif, Kazi Hasan Ibn and Yoon, JinYi and Nikolopoulos, Dimitrios S. and "
    "Vandierendonck, Hans and John, Deepu and Ji, Bo",
    year=2025,
    arxiv="2408.10945",
    venue="Proceedings of the AAAI Conference on Artificial Intelligence (AAAI)",
    code="hasanar1f/HiRED, MIT",
)


@strategies.register("hired")
@dataclass
class HiRED(Strategy):
    """Give every part of a high-resolution picture its share of the budget, then keep the best.

    The parts are the crops that the vision tower sees, and the whole picture at low resolution.
    The share `whole` of the budget is for the whole picture. The rest is shared among the crops as
    the places are that the class token attends to most in the tower's first layer on the whole
    picture: as many of its tokens count as the share that is left. Within a part the tokens stay
    that the class token attends to most in the layer whose features are used.

    Where there are no crops, the best of all tokens stay. What rounding leaves over goes to the
    best of those that are left, so that the budget is met. Pictures of a sample share its budget.

    Deviation from the original: crops are told apart by their places in the picture; where padding
    was cut off, all crops of a row or column lose alike.

    Raises:
        ValueError: a share outside 0 to 1.
    """

    whole: float = 0.5
    """Share of the budget for the whole picture at low resolution."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"class_attention", "class_attention_first", "grid"}
    )
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "of each crop the best by class attention, its quota by what the first layer sees of "
        "the whole"
    )
    cost: ClassVar[str] = "O(v log v), to sort and to find what of the whole picture a token shows"

    def __post_init__(self) -> None:
        share(self.whole, "whole")

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The best tokens of every part, as many as its share says."""
        picture = candidates(tokens)
        part, overview = parts(tokens, picture)
        attention = tokens["class_attention"].mean(dim=1).float()
        early = tokens["class_attention_first"].mean(dim=1).float()
        size = torch.tensor(budget, device=part.device)[:, None]
        low = torch.where((picture & ~overview).any(dim=1, keepdim=True), self.whole, 1.0)
        first = (size * low).round().long()

        counted = (overview.sum(dim=1, keepdim=True) * (1 - low)).round().long()
        seen = places_in_order(early, overview) < counted
        shown = _shown(tokens, overview, seen) & picture & ~overview
        by_part = shown.new_zeros(shown.shape, dtype=torch.long)
        by_part = by_part.scatter_add(1, part, shown.long())
        total = by_part.sum(dim=1, keepdim=True).clamp(min=1)
        limit = ((size - first) * by_part // total).gather(1, part)
        limit = torch.where(overview, first, limit)
        return select(attention + (_rank_in(attention, part, picture) < limit), tokens, budget)

    def scheduler(self) -> Scheduler:
        """Before the language model, to a fifth."""
        return Single(layer=0, keep=0.2)


def parts(tokens: Tokens, picture: Tensor) -> tuple[Tensor, Tensor]:
    """(b, v) the number of each token's part, and whether that is the whole picture.

    A crop is as large as the whole picture's own grid: larger grids are several crops.
    """
    at = tokens.places
    overview = picture & (at.tile == 0)
    view, image, crop = numbered(at.grid), numbered(at.image), torch.zeros_like(at.row)
    for along in (at.row, at.column):
        side = _most(along + 1, image, overview).gather(1, image).clamp(min=1)
        length = _most(along + 1, view, picture).gather(1, view).clamp(min=1)
        number = -(-length // side)
        crop = crop * SPAN + (along * number // length).clamp(max=SPAN - 1)
    one = torch.where(overview, 0, view * SPAN * SPAN + crop + 1)
    return numbered(torch.where(picture, one, 0)), overview


def _most(x: Tensor, group: Tensor, among: Tensor) -> Tensor:
    """(b, v) the largest `x` in the group of each number, 0 where there is none."""
    values = torch.where(among, x, 0)
    return torch.zeros_like(x).scatter_reduce(1, group, values, "amax")


def _rank_in(score: Tensor, part: Tensor, among: Tensor) -> Tensor:
    """(b, v) the place of each token in the order of the scores of its part."""
    better = places_in_order(score, among)
    order = better.argsort(dim=1, stable=True)
    order = order.gather(1, part.gather(1, order).argsort(dim=1, stable=True))
    place = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    start = torch.full_like(rank, rank.shape[1]).scatter_reduce(1, part, rank, "amin")
    return torch.where(among, rank - start.gather(1, part), score.shape[1])


def _shown(tokens: Tokens, overview: Tensor, seen: Tensor) -> Tensor:
    """(b, v) whether a token's place is one of the whole picture's that are `seen`."""
    at = tokens.places
    known = at.x >= 0
    image = numbered(at.image)
    sought = shown = image
    for where, along in ((at.y, at.row), (at.x, at.column)):
        side = _most(along + 1, image, overview).gather(1, image)
        sought = sought * (2 * SPAN) + (where * side // SPAN).clamp(min=0)
        shown = shown * (2 * SPAN) + along
    # places of the whole picture that are seen, in order; a token's own is one of them, or is not
    line = torch.where(overview & seen, shown, torch.iinfo(shown.dtype).max).sort(dim=1).values
    spot = torch.searchsorted(line, sought.contiguous()).clamp(max=line.shape[1] - 1)
    return known & (line.gather(1, spot) == sought)
