"""HiPrune: hierarchical attention of the vision tower, section 4 of its paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenreduce.checks import layer_or_share, share
from tokenreduce.errors import BadOption
from tokenreduce.evidence import at_layer
from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import candidates, numbered, places_in_order, select
from tokenreduce.strategy import Positions, Strategy, strategies
from tokenreduce.tokens import SPAN, Plan, Tokens, keep_from_mask

MIDDLE = 1 / 3
"""Where the layer lies that looks at objects: the ninth of 24 in CLIP."""

PAPER = Paper(
    key="liu2026hiprune",
    title="{HiPrune}: Hierarchical Attention for Efficient Token Pruning in Vision-Language Models",
    authors="Liu, Jizhihui and Du, Feiyi and Zhu, Guangdao and Lian, Niu and Li, Jun and Chen, Bin "
    "and Guan, Weili and Wang, Yaowei",
    year=2026,
    arxiv="2508.00553",
    venue="Findings of the Association for Computational Linguistics (ACL Findings)",
    code="Danielement321/HiPrune, MIT",
    note='A first version (AAAI 2026, student abstract) is titled "HiPrune: Training-Free Visual '
    'Token Pruning via Hierarchical Attention in Vision-Language Models".',
)


@strategies.register("hiprune")
@dataclass
class HiPrune(Strategy):
    """Keep what the tower's middle looks at, with its neighbours, and what its end looks at.

    Of k tokens, round(alpha k / 5) are anchors: those with most attention in a middle layer of the
    vision tower, where it looks at objects. Their neighbours on the picture's grid, above, below,
    left and right, are buffers. The other places are for registers, which have most attention in
    the layer whose features are used. Attention is that of all tokens of the tower, mean over
    heads. The question plays no part; pictures of a sample share its budget. Where a budget is
    smaller than anchors and buffers, anchors come first.

    Deviations from the original, which `as_published` takes back: neighbours lie in the same
    picture, frame and tile (there, an anchor's neighbours are its index plus and minus 1 and the
    width: at the end of a row they wrap to the next one, and what would lie outside becomes the
    first or the last token). No register is an anchor or a buffer (there, their attention is
    lowered by 1: too little on Qwen, where it is 1 on average, so that fewer than k tokens stay;
    evidence here is a share of 1, so that this shows with recorded scores alone).

    Raises:
        ValueError: a share outside 0 to 1, neither a layer nor a share of the depth.
    """

    alpha: float = 0.1
    """Share of the budget for anchors and buffers."""
    layer: int | float = MIDDLE
    """The middle layer, from 0, or a share of the depth below 1 (there 8 of 24; Qwen 15 of 32)."""
    as_published: bool = False
    """Neighbours by index, wrapping at the end of a row, as in the original code."""

    positions: ClassVar[Positions] = "compact"
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "round(alpha k / 5) anchors by attention in the tower's middle, their 4 neighbours, and "
        "the top of its end"
    )
    cost: ClassVar[str] = (
        "O(v log v), on top of the attention of all p tokens of the tower in two of its layers, "
        "O(h p² e) for h heads e wide, in blocks"
    )

    def __post_init__(self) -> None:
        share(self.alpha, "alpha")
        layer_or_share(self.layer)

    @property
    def needs(self) -> frozenset[str]:
        """The tower's attention in its middle layer and at its end."""
        return frozenset({"grid", "tower_attention", self._middle})

    @property
    def _middle(self) -> str:
        return at_layer("tower_attention", layer_or_share(self.layer))

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Anchors, buffers, and registers for what is left of the budget."""
        picture = candidates(tokens)
        middle, end = (tokens[x].mean(dim=1).float() for x in (self._middle, "tower_attention"))
        anchors = [round(k * self.alpha / 5) for k in budget]
        anchor = picture & (places_in_order(middle, picture) < _column(anchors, middle))
        around = _by_index if self.as_published else _neighbours
        chosen = anchor | (around(tokens, anchor) & picture)
        score = end + 2.0 * chosen + 2.0 * anchor  # attention is a share: below 1
        if not self.as_published:
            return select(score, tokens, budget)
        if tokens.separated:
            raise BadOption(
                "as_published counts tokens that carry picture alone, and here rows end in "
                "separators: use HiPrune(as_published=False)"
            )
        limit = _column(budget, middle)
        left = limit - chosen.sum(dim=1, keepdim=True)
        register = places_in_order(end - chosen.float(), picture) < left
        first = places_in_order(2.0 * chosen + 2.0 * anchor, picture) < limit
        mask = picture & ((chosen & first) | register)
        return Plan(*keep_from_mask(mask, max(budget, default=0)), score=score)

    def scheduler(self) -> Scheduler:
        """Before the language model, to a third: 192 of LLaVA-1.5's 576."""
        return Single(layer=0, keep=1 / 3)


def _neighbours(tokens: Tokens, anchor: Tensor) -> Tensor:
    """(b, v) whether an anchor lies above, below, left or right of a token, in the same tile."""
    at = tokens.places
    key = (numbered(at.grid) * SPAN + at.row) * SPAN + at.column
    held = torch.where(anchor, key, torch.iinfo(key.dtype).max).sort(dim=1).values
    near = torch.zeros_like(anchor)
    for step in (-1, 1, -SPAN, SPAN):
        spot = torch.searchsorted(held, key + step).clamp(max=key.shape[1] - 1)
        near = near | (held.gather(1, spot) == key + step)
    return near


def _by_index(tokens: Tokens, anchor: Tensor) -> Tensor:
    """(b, v) the tokens one index and one width before and after an anchor, held within 0..n-1."""
    width = tokens.places.column.amax(dim=1, keepdim=True) + 1
    last = _column(tokens.counts, anchor) - 1
    index = torch.arange(anchor.shape[1], device=anchor.device)
    near = torch.zeros_like(anchor, dtype=torch.long)
    for step in (-1, 1, -width, width):
        near = near.scatter_add(
            1, (index + step).clamp(min=0).minimum(last.clamp(min=0)).expand_as(near), anchor.long()
        )
    return near > 0


def _column(counts: Sequence[int], like: Tensor) -> Tensor:
    """(b, 1) numbers that the host knows."""
    return torch.tensor(tuple(counts), device=like.device)[:, None]
