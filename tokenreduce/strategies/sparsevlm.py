"""SparseVLM: visual token sparsification, section 3 of its paper; SparseVLM+."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.explicit import Explicit
from tokenreduce.selection import blocks, dense, select
from tokenreduce.strategy import Positions, Strategy, strategies
from tokenreduce.tokens import Merge, Plan, Tokens, gather

SHARE, MEMBERS, HEADS = 0.3, 10, 14
"""Of what is dropped this share is recycled, one cluster to so many tokens; heads of version 2."""

PAPER = Paper(
    key="zhang2025sparsevlm",
    title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    authors="Zhang, Yuan and Fan, Chun-Kai and Ma, Junpeng and Zheng, Wenzhao and Huang, Tao "
    "and Cheng, Kuan and Gudovskiy, Denis and Okuno, Tomoyuki and Nakata, Yohei and "
    "Keutzer, Kurt and Zhang, Shanghang",
    year=2025,
    arxiv="2410.04417",
    venue="Proceedings of the International Conference on Machine Learning (ICML)",
    code="Gumpest/SparseVLMs, Apache-2.0",
)


@strategies.register("sparsevlm")
@dataclass
class SparseVLM(Strategy):
    """Keep what the words that are about the picture attend to; recycle the best of the rest.

    Text raters are the text tokens after the picture whose embeddings match it above average.
    Their attention, one layer earlier, ranks the visual tokens. Version 1 (the paper) merges the
    best 30 % of what it drops into one token for every ten, by density-peak clustering. Version 2
    (SparseVLM+) drops only, reads the 14 heads that look at the picture most, and divides attention
    by what the rotation leaves of it over the distance. With `distance=False` it does not: that
    divisor turns negative beyond 1,707 tokens with heads 128 wide (725 with 64), and the ranking
    with it.

    The budget counts merged tokens. A merged token takes the place of its cluster's centre (the
    original puts them after the kept ones). A sample without text after its first visual token is
    rated by its last token. Pictures of a sample share its budget.

    Raises:
        ValueError: another version than 1 or 2.
    """

    version: Literal[1, 2] = 1
    """1: the paper, merges; 2: SparseVLM+, drops only, positions kept."""
    distance: bool = True
    """Version 2: undo what rotation takes from attention over the distance."""

    reads_text: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "top of the attention of words that match the picture, and clusters of the best of the rest"
    )
    cost: ClassVar[str] = (
        "O(h t v) for t text tokens, and O(r² d) for r recycled ones; memory O(h t v), and "
        "O(r²) up to 4,096 of them"
    )
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"no SparseVLM version {self.version!r} (known: 1, 2)")

    @property
    def needs(self) -> frozenset[str]:
        """The text's attention one layer before; what divides it where that is asked for."""
        return _EVIDENCE | {"text_rotation_before"} if self._divides else _EVIDENCE

    @property
    def positions(self) -> Positions:
        """Those of the original code: version 1 renumbers what is left."""
        return "compact" if self.version == 1 else "keep"

    @property
    def _divides(self) -> bool:
        return self.version == 2 and self.distance

    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) attention of the text raters, mean over them and over heads."""
        raters, _ = text_raters(tokens)
        share = tokens["text_attention_before"].float()
        if self._divides:
            share = share / tokens["text_rotation_before"][:, None]
        seen = raters[:, None, :, None] & tokens.valid[:, None, None]
        share = torch.where(seen, share, 0.0)
        if self.version == 2 and share.shape[1] > HEADS:
            heads = share.sum(dim=(2, 3)).topk(HEADS, dim=1).indices
            share = gather(share, heads)
        number = raters.sum(dim=1, keepdim=True)
        score = share.mean(dim=1).sum(dim=1) / number.clamp(min=1)
        return torch.where(number > 0, score, tokens["attention_before"].mean(dim=1))

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The best rated tokens, and in version 1 the clusters of the next best."""
        score = self.score(tokens)
        if self.version == 2:
            return select(score, tokens, budget)
        counts = zip(tokens.counts, budget, strict=True)
        numbers = [self.numbers(n, min(k, n)) for n, k in counts]
        return _recycled(score, tokens, numbers)

    def numbers(self, n: int, k: int) -> tuple[int, int, int]:
        """How many of `n` tokens are kept, recycled, and merged into, so that `k` are left.

        Of several ways to meet the budget the one that keeps most.
        """
        if k in (0, n):
            return k, 0, 0
        fits = (m for m in range(1, k) if clusters(n - k + m)[1] <= m)
        merged = next(fits, k)
        return k - merged, clusters(n - k + merged)[0], merged

    def scheduler(self) -> Scheduler:
        """The authors' for 192 of 576 tokens on average: after layers 2, 6 and 15 of 32."""
        left = (309, 204, 113) if self.version == 1 else (300, 200, 118)
        return Explicit((3 / 32, 7 / 32, 1 / 2), tuple(n / 576 for n in left))


_EVIDENCE = frozenset(
    {
        "text_attention_before", "attention_before", "text_behind",
        "embedding", "embedding_valid", "text_embedding",
    }
)  # fmt: skip


def text_raters(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """(b, t) which text tokens rate the visual ones, and how well each matches the picture.

    A visual token's match is a softmax over the text after the picture; averaged over the visual
    tokens of layer 0, it is held against its mean. Where all match alike, all of them rate.
    """
    after, there = tokens["text_behind"], tokens["embedding_valid"]
    product = tokens["embedding"].float() @ tokens["text_embedding"].float().transpose(1, 2)
    product = product.masked_fill(~after[:, None], float("-inf"))
    match = product.softmax(dim=-1).nan_to_num(nan=0.0).masked_fill(~there[..., None], 0.0)
    score = match.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)
    mean = score.sum(dim=1, keepdim=True) / after.sum(dim=1, keepdim=True).clamp(min=1)
    raters = after & (score > mean)
    return torch.where(raters.any(dim=1, keepdim=True), raters, after), score


def clusters(dropped: int) -> tuple[int, int]:
    """How many of `dropped` tokens are recycled, and into how many clusters."""
    recycled = int(dropped * SHARE) + 1
    return recycled, recycled // MEMBERS + 1


def _recycled(score: Tensor, tokens: Tokens, numbers: list[tuple[int, int, int]]) -> Plan:
    """The plan of version 1, from how many tokens each sample keeps, recycles and merges into."""
    b, v = score.shape
    kept, recycled, merged = torch.tensor(numbers, device=score.device).T[..., None]
    order = score.masked_fill(~tokens.valid, float("-inf")).argsort(
        dim=1, descending=True, stable=True
    )
    place = torch.arange(v, device=score.device).expand(b, v)
    mask = torch.zeros_like(tokens.valid).scatter(1, order, place < kept)

    # the recycled tokens (b, r) in the order of their scores, their centres and clusters
    most = max(max(n[1] for n in numbers), 1)
    turn = torch.arange(most, device=score.device).expand(b, most)
    index = order.gather(1, (kept + turn).clamp(max=v - 1))
    there = turn < recycled
    centre, cluster = density_peaks(gather(tokens.hidden, index), there, merged)
    spare = torch.where(there, index, v)  # filler writes after the tokens
    mask = _put(mask, spare, centre)

    slot = mask.long().cumsum(dim=1) - 1
    into = slot.gather(1, index.gather(1, cluster))
    group = _put(torch.where(mask, slot, -1), spare, into)
    left = [sum(n[::2]) for n in numbers]
    return Plan.of(mask, tokens, left, content=Merge(group), score=score)


def density_peaks(x: Tensor, there: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters the rows of `x` (b, r, d), those that are `there`, into `k` (b, 1) per sample.

    Returns (b, r) which rows are centres, and the row of the centre that each goes to. A row's
    density falls with the distance to its `k` nearest (itself among them); centres are dense and
    far from anything denser.

    Source: density-peak clustering with nearest neighbours (Du et al., 2016).
    """
    far = Distances.of(x.float())
    place = torch.arange(x.shape[1], device=x.device)
    densities, widest = [], x.new_zeros(len(x), 1, 1, dtype=torch.float)
    for rows, apart in far.rows():
        pair = there[:, rows, None] & there[:, None]
        nearest = apart.masked_fill(~pair, float("inf")).sort(dim=2).values
        near = torch.where((place < k)[:, None] & nearest.isfinite(), nearest, 0.0)
        densities.append((-near.square().sum(dim=2) / k.clamp(min=1)).exp())
        most = torch.where(pair, apart, 0.0).amax(dim=(1, 2), keepdim=True)
        widest = torch.maximum(widest, most)
    density = torch.cat(densities, dim=1)

    peaks = []
    for rows, apart in far.rows():
        pair = there[:, rows, None] & there[:, None]
        denser = pair & (density[:, None] > density[:, rows, None])
        peaks.append(density[:, rows] * torch.where(denser, apart, widest).amin(dim=2))
    peak = torch.cat(peaks, dim=1)
    order = peak.masked_fill(~there, float("-inf")).argsort(dim=1, descending=True, stable=True)
    centre = torch.zeros_like(there).scatter(1, order, place < k) & there
    out = ~centre[:, None]
    found = [apart.masked_fill(out, float("inf")).argmin(dim=2) for _, apart in far.rows()]
    return centre, torch.where(centre, place, torch.cat(found, dim=1))


@dataclass(frozen=True)
class Distances:
    """How far the rows of `x` (b, r, d) are from each other, over the square root of d.

    Attributes:
        x: the rows.
        whole: (b, r, r), or None where it is more than one block: then it is made when it is read.
    """

    x: Tensor
    whole: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor) -> Distances:
        """Those of `x` (b, r, d)."""
        r = x.shape[1]
        return cls(x, cls(x).made(slice(0, r)) if dense(r) else None)

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """Some rows and their (b, rows, r) distances, until all had their turn."""
        for rows in blocks(self.x.shape[1], self.x.shape[1]):
            yield rows, self.made(rows) if self.whole is None else self.whole

    def made(self, rows: slice) -> Tensor:
        """(b, rows, r)."""
        exact = "donot_use_mm_for_euclid_dist"
        far: Tensor = torch.cdist(self.x[:, rows], self.x, compute_mode=exact)
        return far / float(self.x.shape[-1] ** 0.5)


def _put(into: Tensor, at: Tensor, x: Tensor) -> Tensor:
    """(b, v) `into` with `x` (b, r) at `at` (b, r); entries at v are left out."""
    spare = torch.cat([into, into[:, :1]], dim=1)
    return spare.scatter(1, at, x)[:, :-1]
