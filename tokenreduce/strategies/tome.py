"""Token Merging, section 3 of its paper: bipartite soft matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, get_args

import torch
from torch import Tensor

from tokenreduce.checks import integer, sequence
from tokenreduce.errors import did_you_mean
from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import blocks
from tokenreduce.strategy import TowerOutput, TowerStrategy, strategies, tower_output
from tokenreduce.tokens import Merge, Plan, Tokens

PAPER = Paper(
    key="bolya2023token",
    title="Token Merging: Your ViT But Faster",
    authors="Bolya, Daniel and Fu, Cheng-Yang and Dai, Xiaoliang and Zhang, Peizhao and "
    "Feichtenhofer, Christoph and Hoffman, Judy",
    year=2023,
    arxiv="2210.09461",
    venue="International Conference on Learning Representations (ICLR)",
    code="facebookresearch/ToMe, CC BY-NC 4.0",
)


@strategies.register("tome")
@dataclass
class ToMe(TowerStrategy):
    """Merge the tokens that are most alike, layer by layer inside the vision tower.

    Every second token seeks the most similar one among the others (cosine of keys, mean over
    heads); the pairs that are most alike merge into a mean weighted by size. One round merges half
    of the tokens at most; where a budget asks for more, as in a decoder, rounds follow each other.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"keys"})
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "the pairs of most alike keys, between every second token and the others, merged to "
        "their mean"
    )
    cost: ClassVar[str] = (
        "v² / 4 products of a head's width for each round; memory O(v d), and O(v²) up to "
        "8,192 tokens"
    )
    mixes: ClassVar[bool] = True

    r: int | Sequence[int] = 8
    """Tokens that leave in each layer of a vision tower, or a list [8, 8, 4].

    Layers beyond a list merge none. Where pictures are packed: of every picture, frame or window.
    """
    inflect: float = 0.0
    """-1 to 1: how r changes over the layers.

    They start at r (1 - inflect) and end at r (1 + inflect).
    """
    prop_attn: bool = True
    """Attention in proportion to size, in a vision tower (Qwen, GLM, InternVL: false)."""
    tower: TowerOutput | None = None
    """null: at decoder layers; merged | expanded: in the vision tower, where r decides.

    At decoder layers the schedule decides how many leave, and attention stays as it is. In the
    tower no schedule is read: under `"merged"` the language model gets every group once, under
    `"expanded"` at every position of its tokens.
    """

    def __post_init__(self) -> None:
        self.tower = tower_output(self.tower)
        if self.tower not in (None, *get_args(TowerOutput)):
            hint = did_you_mean(str(self.tower), get_args(TowerOutput))
            raise ValueError(f"no tower {self.tower!r}{hint} (known: None, merged, expanded)")
        if isinstance(self.r, Integral):
            integer(self.r, "r", least=0)
        else:
            hint = "each of r (a schedule is written r=8, inflect=-1.0)"
            self.r = tuple(integer(x, hint, least=0) for x in sequence(self.r, "r"))
            if self.inflect:
                raise ValueError(f"inflect={self.inflect!r} changes one number r, not the list r")
        if not -1 <= self.inflect <= 1:
            raise ValueError(f"inflect must be between -1 and 1, not {self.inflect!r}")

    @property
    def proportional(self) -> bool:
        """Whether attention is proportional to size."""
        return self.prop_attn

    def merges(self, depth: int) -> tuple[int, ...]:
        """How many tokens each of `depth` layers is asked to merge."""
        if isinstance(self.r, Sequence):
            return (*self.r, *[0] * depth)[:depth]
        first = int(self.r * (1 - self.inflect))
        step = (2 * self.r - 2 * first) / max(depth - 1, 1)
        return tuple(int(first + step * i) for i in range(depth))

    def counts(self, depth: int, tokens: int, fixed: int = 0) -> tuple[int, ...]:
        """Tokens after each layer: never less than half of those that may merge."""
        left = []
        for asked in self.merges(depth):
            tokens -= min(asked, (tokens - fixed) // 2)
            left.append(tokens)
        return tuple(left)

    def scheduler(self) -> Scheduler:
        """In a decoder: once, before the first layer; the paper knows no language model."""
        return Single(layer=0, keep=0.25)

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Groups of tokens that are alike, one to every kept place."""
        have = list(tokens.counts)
        aim = [min(k, n) for k, n in zip(budget, have, strict=True)]
        b, v = tokens.valid.shape
        keep = torch.arange(v, device=tokens.valid.device).expand(b, v)
        if aim == have and v == max(have, default=0):
            return Plan(keep, None if len(set(aim)) <= 1 else tokens.valid)
        if not max(aim, default=0):
            return Plan(keep[:, :0], None, Merge(torch.full_like(keep, -1)))
        group, valid = keep, tokens.valid
        size = torch.ones_like(valid, dtype=torch.float) if tokens.size is None else tokens.size
        x = tokens["keys"].float().mean(dim=1)
        least = [max(k, min(n, 1)) for k, n in zip(aim, have, strict=True)]  # 0 is dropping
        while least != have or keep.shape[1] > max(have):
            fixed = tokens.fixed
            leaving = [min(n - k, (n - fixed) // 2) for k, n in zip(least, have, strict=True)]
            one = match(x, valid, leaving, have, fixed)
            weight = size * valid
            x, size = _sums(one, x * weight[..., None]), _sums(one, weight[..., None])[..., 0]
            x = x / size.clamp(min=1e-9)[..., None]
            assert one.group is not None  # `match` groups
            group = torch.where(group < 0, -1, one.group.gather(1, group.clamp(min=0)))
            keep, have = (
                keep.gather(1, one.keep),
                [n - m for n, m in zip(have, leaving, strict=True)],
            )
            valid = _first(have, keep)
        group = group.masked_fill(~tokens.valid, -1)
        if tokens.ordered:
            order = keep.masked_fill(~valid, v).argsort(dim=1, stable=True)
            place = torch.empty_like(order).scatter_(1, order, _arange(order))
            keep, group = (
                keep.gather(1, order),
                place.gather(1, group.clamp(min=0)).masked_fill(group < 0, -1),
            )
        width = max(aim)
        kept = _first(aim, keep)
        group = group.masked_fill((torch.tensor(aim, device=group.device) == 0)[:, None], -1)
        return Plan(
            keep.masked_fill(~kept, 0)[:, :width],
            None if len(set(aim)) <= 1 else kept[:, :width],
            Merge(group, tokens.size),
        )


def match(
    x: Tensor, valid: Tensor, leaving: Sequence[int], have: Sequence[int], fixed: int = 0
) -> Plan:
    """One round: every second token to the one it is most like, the best `leaving` pairs.

    Args:
        x: (b, v, d) what likeness is measured on.
        valid: (b, v) True at a sample's tokens, which come first.
        leaving: pairs to merge per sample, half of the tokens that are not fixed at most.
        have: tokens per sample.
        fixed: tokens in front that take no part.

    Returns:
        Groups of all tokens; what is kept comes in the order of the authors' code: fixed tokens,
        then the seeking ones that stay (as they stood where any is fixed, else the most alike
        first), then the others.
    """
    v = x.shape[1]
    place = _arange(valid)
    free = valid & (place >= fixed)
    x = torch.nn.functional.normalize(x, dim=-1)
    best, at = _most_alike(x, free)
    order = best.masked_fill(~valid[:, ::2], float("-inf")).argsort(
        dim=1, descending=True, stable=True
    )
    rank = torch.empty_like(order).scatter_(1, order, _arange(order))
    merged = rank < torch.tensor(leaving, device=x.device)[:, None]

    # where every token lies among those that stay: fixed ones, seeking ones, the others, padding
    stays = torch.ones_like(valid)
    stays[:, ::2] = ~merged
    standing = place + v * (place % 2)
    if not fixed:
        standing = standing.clone()
        standing[:, ::2] = rank
    standing = torch.where(place < fixed, place - fixed, standing)
    standing = torch.where(valid, standing, standing + 4 * v)
    standing = torch.where(stays, standing, 8 * v)
    line = standing.argsort(dim=1, stable=True)
    slot = torch.empty_like(line).scatter_(1, line, _arange(line))
    into = place.clone()
    into[:, ::2] = torch.where(merged, 2 * at + 1, place[:, ::2])
    group = slot.gather(1, into.clamp(max=v - 1))
    width = max((n - m for n, m in zip(have, leaving, strict=True)), default=0)
    keep = line[:, :width]
    group = torch.where(group < width, group, -1).masked_fill(~valid, -1)
    return Plan(keep, None, Merge(group))


def _most_alike(x: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """(b, v/2) of every second token the largest likeness to one of the others, and which."""
    seeking, sought = x[:, ::2], x[:, 1::2].transpose(1, 2)
    found = []
    for rows in blocks(seeking.shape[1], sought.shape[2]):
        likeness = seeking[:, rows] @ sought
        may = free[:, ::2, None][:, rows] & free[:, None, 1::2]
        likeness = likeness.masked_fill(~may, float("-inf"))
        likeness = torch.nn.functional.pad(likeness, (0, 1), value=float("-inf"))  # maybe no other
        found.append(likeness.max(dim=2))
    best, at = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return best, at


def _sums(plan: Plan, x: Tensor) -> Tensor:
    """(b, v, d) -> (b, k, d) the sum over every group."""
    assert plan.group is not None
    b, k = plan.keep.shape
    slot = torch.where(plan.group < 0, k, plan.group)
    index = slot[..., None].expand_as(x)
    return x.new_zeros(b, k + 1, x.shape[-1]).scatter_add(1, index, x)[:, :k]


def _first(counts: Sequence[int], like: Tensor) -> Tensor:
    """(b, v) True at the first `counts` of every row."""
    return _arange(like) < torch.tensor(counts, device=like.device)[:, None]


def _arange(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device).expand(like.shape)
