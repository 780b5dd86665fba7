"""VisionZip: longer is better but not necessary, section 3 of its paper."""

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
from tokenreduce.selection import blocks, candidates, kept, other_picture, select
from tokenreduce.strategy import Positions, Strategy, strategies
from tokenreduce.tokens import Merge, Plan, Tokens, gather, keep_from_mask

PAPER = Paper(
    key="yang2025visionzip",
    title="VisionZip: Longer is Better but Not Necessary in Vision Language Models",
    authors="Yang, Senqiao and Chen, Yukang and Tian, Zhuotao and Wang, Chengyao and Li, "
    "Jingyao and Yu, Bei and Jia, Jiaya",
    year=2025,
    arxiv="2412.04467",
    venue="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition "
    "(CVPR)",
    code="dvlab-research/VisionZip, Apache-2.0",
)


@strategies.register("visionzip")
@dataclass
class VisionZip(Strategy):
    """Keep the dominant tokens, and merge the others into a few contextual ones.

    Dominant are the tokens that the vision tower's class token attends to most. Of the rest, evenly
    spaced ones are targets; each other token goes to the target whose key in the tower is most like
    its own, and a contextual token is its target plus the mean of what went there: a sum of two. A
    picture's tokens go to its own targets, where it has any. The budget is one for a sample,
    whatever its number of pictures.

    Deviations from the original: the class token's own feature is not among the tokens of a stock
    model, so that the dominant ones are patches alone; contextual tokens lie where their targets
    stood (there, after all others); tokens are merged as the language model gets them (there,
    before the projector).

    Raises:
        ValueError: a share outside 0 to 1.
    """

    contextual: float = 30 / 192
    """Share of contextual tokens in the budget: 30 of 192 in the paper."""

    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "tower_keys"})
    positions: ClassVar[Positions] = "compact"
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top of the class token's attention, and evenly spaced targets that take in the rest by key"
    )
    cost: ClassVar[str] = "O(c v d) for c contextual tokens; memory O(v d)"
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.contextual <= 1:
            raise ValueError(f"contextual={self.contextual} is not a share: give 0 to 1")

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Dominant tokens as they are, contextual ones with what was merged into them."""
        share = [
            round(k * self.contextual) if k < n else 0
            for k, n in zip(budget, tokens.counts, strict=True)
        ]
        score = tokens["class_attention"].sum(dim=1)
        chosen = select(score, tokens, [k - c for k, c in zip(budget, share, strict=True)])
        if not any(share):
            return chosen
        dominant = kept(chosen, tokens)
        number = torch.tensor(share, device=dominant.device)[:, None]
        rest = candidates(tokens) & ~dominant & (number > 0)
        target = _spaced(rest, number)
        merged = rest & ~target
        # a budget of nearly everything has places left for separators, in reading order
        spare = tokens.valid & tokens.places.separator & ~dominant
        left = number - target.sum(dim=1, keepdim=True)
        stays = dominant | target | (spare & (spare.cumsum(dim=1) <= left))

        # every token goes to one slot: what stays to its own, the merged to their target's
        own = torch.arange(stays.shape[1], device=stays.device)
        home = torch.where(merged, self._home(tokens, target, max(share)), own)
        guests = torch.zeros_like(score).scatter_add(1, home, merged.to(score.dtype))
        weight = torch.where(merged, 1 / guests.gather(1, home).clamp(min=1), stays.to(score.dtype))
        slot = (stays.long().cumsum(dim=1) - 1).gather(1, home)
        group = torch.where(stays | merged, slot, -1)
        return Plan.of(stays, tokens, budget, content=Merge(group, weight, "sum"), score=score)

    def _home(self, tokens: Tokens, target: Tensor, most: int) -> Tensor:
        """(b, v) the target that each token is most like; of another picture's only if it must."""
        index, there = keep_from_mask(target, most)
        keys = normalize(tokens["tower_keys"].float(), dim=-1)
        targets = gather(keys, index).transpose(1, 2)
        best = []
        for rows in blocks(keys.shape[1], index.shape[1]):
            far = 4.0 * other_picture(tokens, index, rows)  # cosines differ by 2 at most
            likeness = (keys[:, rows] @ targets - far).masked_fill(~there[:, None], float("-inf"))
            best.append(likeness.argmax(dim=2))
        return index.gather(1, torch.cat(best, dim=1))

    def scheduler(self) -> Scheduler:
        """Before the language model, to a third: 192 of LLaVA-1.5's 576."""
        return Single(layer=0, keep=1 / 3)


def _spaced(among: Tensor, number: Tensor) -> Tensor:
    """(b, v) every n-th `among` the tokens, from the first on: `number` (b, 1) of them."""
    place = among.long().cumsum(dim=1) - 1
    total = among.sum(dim=1, keepdim=True)
    step = (total // number.clamp(min=1)).clamp(min=1)
    return among & (place % step == 0) & (place // step < number)
