"""PACT: pruning and clustering-based token reduction, section 3 of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import Cosines, blocks, one_by_one
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import Merge, Plan, Tokens, keep_from_mask

PAPER = Paper(
    key="dhouib2025pact",
    title="{PACT}: Pruning and Clustering-Based Token Reduction for Faster Visual Language Models",
    authors="Dhouib, Mohamed and Buscaldi, Davide and Vanier, Sonia and Shabou, Aymen",
    year=2025,
    arxiv="2504.08966",
    venue="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition "
    "(CVPR)",
    code="orailix/PACT, MIT",
)


@strategies.register("pact")
@dataclass
class PACT(Strategy):
    """Set unimportant tokens aside, and merge the others into clusters of bounded width.

    1. Importance: the softmax of the mean query over the keys (both before rotation), mean
       over heads, times the norm of the hidden state. The share `important` goes on, or as many as
       the budget where that is more.
    2. Distance-bounded density peaks: the densest token farther than `cutoff` (one minus cosine of
       rotated keys) from every centre becomes one, until none is. A token joins its nearest centre
       within `reach` times the cutoff, whether it went on or was set aside; further ones leave. A
       cluster becomes the mean of its tokens, in the place of its centre.

    In the paper the cutoff decides how many clusters there are. Here the budget does: where it ends
    first, the densest centres stay; where centres run out, the tokens farthest from them follow.
    Keys are those of the stop's own layer; separators are tokens like any other, and pictures of a
    sample share its budget. The paper also adds the logarithm of a cluster's size to attention,
    which plans cannot say.

    Raises:
        ValueError: a share outside 0 to 1, a cutoff or a reach below 0.
    """

    important: float = 0.55
    """Share of the tokens that goes on to be clustered."""
    cutoff: float = 0.21
    """Width of a cluster, one minus cosine of keys."""
    reach: float = 1.5
    """Tokens within so many cutoffs of a centre join it."""

    needs: ClassVar[frozenset[str]] = frozenset({"plain_queries", "plain_keys", "keys"})
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "density peaks of the keys, wider apart than a cutoff, among the most important tokens"
    )
    cost: ClassVar[str] = (
        "O(v² d) for densities with keys d wide, O(k v d) for one centre at a time; memory O(v "
        "d), and O(v²) up to 4,096 tokens"
    )
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 <= self.important <= 1 and self.cutoff >= 0 and self.reach >= 0):
            raise ValueError(
                f"important={self.important}, cutoff={self.cutoff} and reach={self.reach} must be "
                "a share between 0 and 1, and two numbers of at least 0"
            )

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) how much the mean query sees of every token, times the token's norm."""
        there = tokens.valid[:, None, :, None]
        queries = torch.where(there, tokens["plain_queries"].float(), 0.0)
        keys = tokens["plain_keys"].float()
        number = tokens.valid.sum(dim=1).clamp(min=1)[:, None, None, None]
        mean = queries.sum(dim=2, keepdim=True) / number
        product = (mean * keys).sum(dim=3) * keys.shape[-1] ** -0.5
        share = product.masked_fill(~tokens.valid[:, None], float("-inf")).softmax(dim=-1)
        importance: Tensor = share.mean(dim=1) * tokens.hidden.detach().float().norm(dim=-1)
        return importance

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Clusters, one for each kept place."""
        counts = [min(k, n) for k, n in zip(budget, tokens.counts, strict=True)]
        pairs = zip(counts, tokens.counts, strict=True)
        onward = [max(k, int(n * self.important)) for k, n in pairs]
        score = self.score(tokens)
        chosen = _best(score, tokens.valid, onward)

        alike = Cosines.of(tokens["keys"].transpose(1, 2).flatten(2))
        density = torch.zeros_like(score)
        for rows, columns, cosine in alike.tiles():
            near = (-((_far(cosine) / 2) ** 2)).exp()
            density[:, rows] += torch.where(chosen[:, None, columns], near, 0.0).sum(dim=2)
        scores = self.centres(density, alike, chosen, max(counts))
        centre = _best(scores, chosen, counts)

        keep, valid = keep_from_mask(centre, max(*counts, 1))  # without a centre: filler
        width, nearest = _nearest(alike, keep, valid)
        place = torch.arange(centre.shape[1], device=centre.device)
        nearest = torch.where(centre, place, nearest)
        joins = tokens.valid & ((width <= self.reach * self.cutoff) | centre)
        slot = centre.long().cumsum(dim=1) - 1
        group = torch.where(joins, slot.gather(1, nearest), -1)
        return Plan.of(centre, tokens, counts, content=Merge(group), score=score)

    def centres(self, density: Tensor, alike: Cosines, among: Tensor, n: int) -> Tensor:
        """(b, v) scores that rank the first `n` centres in the order in which they are found."""
        nearest = torch.full_like(density, float("inf"))

        def after(pick: Tensor, _: Tensor) -> Tensor:
            nonlocal nearest
            nearest = torch.minimum(nearest, _far(alike.to(pick[:, None])[..., 0]))
            # no distance is above 2: the covered come after all that are not
            return torch.where(nearest > self.cutoff, 4 + density, nearest)

        return one_by_one(4 + density, among, n, after)

    def scheduler(self) -> Scheduler:
        """At the authors' layer, to what they are left with on LLaVA-OneVision."""
        return Single(layer=4, keep=0.287)


def _far(cosine: Tensor) -> Tensor:
    """The distance of two keys."""
    return (1 - cosine).clamp(min=0)


def _nearest(alike: Cosines, centre: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(b, v) the distance of every token to its nearest `centre` (b, k), and which that is."""
    found = []
    for rows in blocks(alike.unit.shape[1], centre.shape[1]):
        far = _far(alike.to(centre, rows)).masked_fill(~valid[:, None], float("inf"))
        found.append(far.min(dim=2))
    width, at = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return width, centre.gather(1, at)


def _best(score: Tensor, among: Tensor, counts: Sequence[int]) -> Tensor:
    """(b, v) the `counts[i]` best of `among` in sample i."""
    order = score.masked_fill(~among, float("-inf")).argsort(dim=1, descending=True, stable=True)
    limit = torch.tensor(counts, device=score.device)[:, None]
    place = torch.arange(score.shape[1], device=score.device)
    return torch.zeros_like(among).scatter(1, order, place < limit) & among
