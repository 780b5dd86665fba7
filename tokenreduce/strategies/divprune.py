"""DivPrune: diversity-based visual token pruning, section 3 of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.choice import Cosines, candidates, of_own, one_by_one
from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Strategy, select, strategies
from tokenreduce.tokens import Plan, Tokens

PAPER = Paper(
    key="alvar2025divprune",
    title="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
    authors="Alvar, Saeed Ranjbar and Singh, Gursimran and Akbari, Mohammad and Zhang, Yong",
    year=2025,
    arxiv="2503.02175",
    venue="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition "
    "(CVPR)",
    code="vbdi/divprune, CC BY-NC 4.0",
)


@strategies.register("divprune")
@dataclass
class DivPrune(Strategy):
    """Keep the tokens that are least alike: the smallest distance among them is made large.

    The distance of two tokens is one minus the cosine of their hidden states. The token that is
    farthest from its nearest neighbour comes first; then, again and again, the one that is farthest
    from everything chosen so far. The question plays no part, and the tokens of all pictures of a
    sample are chosen together.

    Deviation from the original: of tokens that are exactly alike each is chosen once at most (there
    the same one is chosen again and again, and fewer tokens stay than were asked for).
    """

    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "the k tokens, picked greedily, whose smallest distance 1 - cos(i, j) is largest"
    )
    cost: ClassVar[str] = (
        "O(v² d) for the first, O(k v d) in k steps for the others; memory O(v d), and O(v²) "
        "up to 4,096 tokens"
    )

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The first of the farthest-first order."""
        order = farthest_first(tokens.hidden, candidates(tokens), max(budget, default=0))
        return select(of_own(order, budget), tokens, budget)

    def scheduler(self) -> Scheduler:
        """Before the language model, to 9.8 % of the tokens."""
        return Single(layer=0, keep=0.098)


def farthest_first(x: Tensor, among: Tensor, n: int) -> Tensor:
    """(b, v) scores that rank those `among` the rows of `x` (b, v, d), farthest first."""
    alike = Cosines.of(x)
    place = torch.arange(x.shape[1], device=x.device)
    apart = torch.full_like(among, float("inf"), dtype=torch.float)
    for rows, columns, cosine in alike.tiles():
        alone = place[rows, None] == place[columns]
        others = (1 - cosine).masked_fill(alone | ~among[:, None, columns], float("inf"))
        apart[:, rows] = torch.minimum(apart[:, rows], others.amin(dim=2))
    nearest = torch.full_like(apart, float("inf"))

    def after(pick: Tensor, _: Tensor) -> Tensor:
        """(b, v) distance to the nearest of the chosen."""
        nonlocal nearest
        nearest = torch.minimum(nearest, 1 - alike.to(pick[:, None])[..., 0])
        return nearest

    return one_by_one(apart, among, n, after)
