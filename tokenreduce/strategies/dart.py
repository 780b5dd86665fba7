"""DART: duplication-aware reduction of tokens, section 4 of its paper."""

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
from tokenreduce.selection import candidates, select
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import Plan, Tokens, gather

PAPER = Paper(
    key="wen2025stop",
    title="Stop Looking for Important Tokens in Multimodal Language Models: Duplication "
    "Matters More",
    authors="Wen, Zichen and Gao, Yifeng and Wang, Shaobo and Zhang, Junyuan and Zhang, Qintong "
    "and Li, Weijia and He, Conghui and Zhang, Linfeng",
    year=2025,
    arxiv="2502.11494",
    venue="Proceedings of the Conference on Empirical Methods in Natural Language Processing "
    "(EMNLP)",
    code="ZichenWen1/DART; recorded from its port in ModelTC/llmc, Apache-2.0",
)


@strategies.register("dart")
@dataclass
class DART(Strategy):
    """Keep a few pivots, and the tokens that duplicate them least.

    Pivots are the tokens with the largest keys (L1 over all heads, one layer earlier):
    `image_pivots` of the picture, which stay, and `text_pivots` of the text after it. In turn each
    takes the tokens of lowest cosine similarity to it, after the decoder's last norm, from those
    still free.

    The original lets every pivot take the same whole number of tokens, and so keeps less than it
    was asked for. Here the budget is exact: what is left of it after the picture's pivots is split
    evenly among all pivots, those whose turn comes first taking one more. The pivots of a sample
    are shared by its pictures.

    Raises:
        ValueError: a number of pivots below 0, or no pivots at all.
    """

    image_pivots: int = 4
    """Pivots among the visual tokens; they stay."""
    text_pivots: int = 4
    """Pivots among the text after the picture."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"keys_before", "text_keys_before", "normed", "text_normed", "text_behind"}
    )
    reads_text: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "p pivots of largest keys (L1), then in turn the tokens of least cos(token, pivot)"
    )
    cost: ClassVar[str] = "O(p v (d + log v)) for p pivots, whatever k"

    def __post_init__(self) -> None:
        if min(self.image_pivots, self.text_pivots) < 0 or not self.image_pivots + self.text_pivots:
            raise ValueError(
                f"image_pivots={self.image_pivots} and text_pivots={self.text_pivots} must be "
                "whole numbers of at least 0, and one of them above it"
            )

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The picture's pivots, and what all pivots take in turn."""
        limit = torch.tensor(budget, device=tokens.valid.device)[:, None]
        free = candidates(tokens)
        size, text_size = (
            tokens[name].float().abs().sum(dim=(1, 3))
            for name in ("keys_before", "text_keys_before")
        )
        image, image_valid = _largest(size, free, self.image_pivots)
        image_valid = image_valid & (torch.arange(image.shape[1], device=image.device) < limit)
        text, text_valid = _largest(text_size, tokens["text_behind"], self.text_pivots)

        normed = normalize(tokens["normed"].float(), dim=-1)
        pivots = torch.cat(
            [gather(normed, image), gather(normalize(tokens["text_normed"].float(), dim=-1), text)],
            1,
        )
        turns = self.turns(image, text)
        likeness = gather(pivots, turns) @ normed.transpose(1, 2)
        asking = torch.cat([image_valid, text_valid], dim=1).gather(1, turns)
        share = _split(limit - image_valid.sum(dim=1, keepdim=True), asking)

        # the place of every token in the queue: pivots, first picks, second picks, ..., the rest
        p, v = turns.shape[1], free.shape[1]
        queue = p * (v + 2) + _rank(-size.masked_fill(~free, float("-inf")))
        mine = torch.zeros_like(free).scatter(1, image, image_valid)
        queue, free = torch.where(mine, 0, queue), free & ~mine
        for turn in range(p):
            pick = _rank(likeness[:, turn].masked_fill(~free, float("inf")))
            mine = free & (pick < share[:, turn : turn + 1])
            queue, free = torch.where(mine, (pick + 1) * p + turn, queue), free & ~mine
        return select(-queue, tokens, budget)

    def turns(self, image: Tensor, text: Tensor) -> Tensor:
        """(b, p) the order in which the pivots take, as indices into those of picture and text.

        The picture's before the text's, largest first. (The original iterates over a set of
        Python, so that its order depends on hash values of positions; a few choices depend on it.)
        """
        p = image.shape[1] + text.shape[1]
        return torch.arange(p, device=image.device).expand(len(image), -1)

    def scheduler(self) -> Scheduler:
        """After two layers, at the authors' reduction ratio of 77.8 %."""
        return Single(layer=2, keep=0.222)


def _largest(size: Tensor, among: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """(b, p) the `p` largest `among` (b, n), in descending order, and which exist."""
    order = size.masked_fill(~among, float("-inf")).argsort(dim=1, descending=True, stable=True)
    index = order[:, :p]
    return index, among.gather(1, index)


def _rank(x: Tensor) -> Tensor:
    """(b, v) the place of every entry when a row is sorted in ascending order."""
    return x.argsort(dim=1, stable=True).argsort(dim=1)


def _split(total: Tensor, among: Tensor) -> Tensor:
    """(b, p) `total` (b, 1) in even whole parts, one for each of `among`, larger ones first."""
    number = among.sum(dim=1, keepdim=True).clamp(min=1)
    before = among.long().cumsum(dim=1) - 1
    return torch.where(among, total // number + (before < total % number).long(), 0)
