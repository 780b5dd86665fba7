"""LLaVA-PruMerge: adaptive token reduction, section 3 of its paper; PruMerge+."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import blocks, candidates, empty_mix, kept, other_picture, select
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import Mix, Plan, Tokens, gather

NEAR = 32
"""Neighbours whose contents a kept token takes in."""

PAPER = Paper(
    key="shang2025prumerge",
    title="{LLaVA-PruMerge}: Adaptive Token Reduction for Efficient Large Multimodal Models",
    authors="Shang, Yuzhang and Cai, Mu and Xu, Bingxin and Lee, Yong Jae and Yan, Yan",
    year=2025,
    arxiv="2403.15388",
    venue="Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)",
    code="42Shawn/LLaVA-PruMerge, Apache-2.0",
)


@strategies.register("prumerge")
@dataclass
class PruMerge(Strategy):
    """Keep what the class token matches best; add neighbours to each, and the rest as one token.

    A patch's weight is the softmax of the class token's query with the patches' keys in the last
    layer of the tower, over its full width. The best weighted patches stay; each becomes itself
    plus the weighted sum of the 32 patches of its picture (tile, frame) whose keys are most like
    its own. One more token is the weighted sum of all that do not stay. `plus=True` is PruMerge+:
    half of those that stay are evenly spaced instead.

    The budget counts the one more token, and is one for a sample, whatever its number of pictures.

    Deviations from the original: its count follows from outliers of the weights, here the budget
    does. The sum of the rest lies where the best weighted of them was (there, after all
    others), and tokens stay in reading order (there, by weight). Tokens are merged as the language
    model gets them (there, before the projector). Evenly spaced tokens that stay anyway are
    replaced by the next best (there, they stay twice).

    Raises:
        ValueError: more kept tokens than a mixture of that many tokens may have.
    """

    plus: bool = False
    """PruMerge+: half of what stays is evenly spaced."""

    needs: ClassVar[frozenset[str]] = frozenset({"class_match", "match_keys"})
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top k - 1 of softmax(q_cls K), each plus its 32 nearest, and the weighted sum of the rest"
    )
    cost: ClassVar[str] = (
        "O(k v d), for the likeness of keys and the mixing of hidden states; memory O(k v), "
        "for the mixture, refused above 2^28 of it (16,384 of as many tokens, or 4,096 of "
        "65,536)"
    )
    mixes: ClassVar[bool] = True

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The kept tokens with their neighbours, and the sum of the rest."""
        counts = list(zip(budget, tokens.counts, strict=True))
        more = [int(1 < k < n) for k, n in counts]
        picture = candidates(tokens)
        weight = tokens["class_match"].float().masked_fill(~picture, 0.0)
        mix = empty_mix("prumerge", weight, max(min(k, n) for k, n in counts))
        single = [k - one for k, one in zip(budget, more, strict=True)]
        own = kept(select(self.score(weight, picture, single), tokens, single), tokens)

        one = torch.tensor(more, device=own.device)[:, None] > 0
        rest = picture & ~own & one
        best = weight.masked_fill(~rest, -1.0).argmax(dim=1)
        total = rest & (one_hot(best, rest.shape[1]) > 0)
        # where separators alone are left, one of them takes the place
        spare = tokens.valid & ~picture & ~own & one & ~rest.any(dim=1, keepdim=True)
        spare = spare & (spare.cumsum(dim=1) == 1)

        plan = Plan.of(own | total | spare, tokens, budget, score=weight)
        keep = plan.keep
        merging = torch.tensor([k < n for k, n in counts], device=own.device)[:, None]
        alone, summed = gather(picture, keep) & merging, gather(total, keep)
        for slots in blocks(*mix.shape[1:]):
            around = self.near(tokens, keep[:, slots], picture) * weight[:, None]
            contents = one_hot(keep[:, slots], own.shape[1]).to(weight.dtype)
            contents = contents + torch.where(alone[:, slots, None], around, 0.0)
            everything = (weight * rest)[:, None].expand_as(contents)
            mix[:, slots] = torch.where(summed[:, slots, None], everything, contents)
        return replace(plan, content=Mix(mix))

    def score(self, weight: Tensor, picture: Tensor, counts: Sequence[int]) -> Tensor:
        """(b, v) weights; with `plus`, the better half and evenly spaced tokens come first."""
        if not self.plus:
            return weight
        half = torch.tensor([(k + 1) // 2 for k in counts], device=weight.device)[:, None]
        spaced = torch.tensor([k // 2 for k in counts], device=weight.device)[:, None]
        order = weight.masked_fill(~picture, -1.0).argsort(dim=1, descending=True, stable=True)
        best = order.argsort(dim=1) < half
        place = picture.long().cumsum(dim=1) - 1
        step = (picture.sum(dim=1, keepdim=True) // spaced.clamp(min=1)).clamp(min=1)
        even = (place % step == 0) & (place // step < spaced)
        return weight + (picture & (best | even))  # a weight is a share: below 1

    def near(self, tokens: Tokens, index: Tensor, picture: Tensor) -> Tensor:
        """(b, k, v) True at the patches most like each of the tokens at `index` (b, k)."""
        keys = normalize(tokens["match_keys"].float(), dim=-1)
        likeness = gather(keys, index) @ keys.transpose(1, 2)
        other = other_picture(tokens, index).transpose(1, 2) | ~picture[:, None]
        other = other | (one_hot(index, keys.shape[1]) > 0)
        likeness = likeness.masked_fill(other, float("-inf"))
        most = likeness.topk(min(NEAR, keys.shape[1]), dim=2)
        return torch.zeros_like(other).scatter(2, most.indices, most.values.isfinite())

    def scheduler(self) -> Scheduler:
        """Before the language model, to a quarter, as PruMerge+ has it on average."""
        return Single(layer=0, keep=0.25)
