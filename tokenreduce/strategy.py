"""The base of every method: which tokens stay, given the tokens and a budget.

Shapes: b samples, v visual tokens, k kept. A strategy is pure: it reads tensors and returns a
`Plan`; it never touches the model, and holds nothing but its own options.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from tokenreduce.paper import Paper
from tokenreduce.registry import Registry
from tokenreduce.tokens import Plan, Tokens

if TYPE_CHECKING:
    from tokenreduce.scheduler import Scheduler

Positions = Literal["keep", "compact"]
Handed = Literal["merged", "spread"]


@dataclass(frozen=True)
class Prepared:
    """Pictures as the processor is to get them.

    Attributes:
        images: PIL pictures.
        full: visual tokens of each as it was; None where nothing was changed.
    """

    images: Sequence[Any]
    full: Sequence[int] | None = None


class Strategy(ABC):
    """Decides which visual tokens stay at a stop.

    Class attributes state the facts of a method. `needs`, `positions` and `reads_text` may depend
    on its options: each is then a `@property`. They are read from an instance, never from a class.

    * `needs`: the evidence it reads (names of `tokenreduce.tokens.EVIDENCE`).
    * `positions`: its paper's position rule, used where it is defined for the model.
    * `reduces`: False where every token stays in the model, whatever the budget.
    * `reads_text`: True when the choice depends on the question, so that a cached prefix does too.
    * `watches`: True when it is asked also where everything stays; its plan is then not used.
    * `site`: where it acts. A method whose whole work is that of `prepare`, before the processor,
      acts on `"pictures"`; inside a model it is refused.
    * `paper`: where the method comes from.
    * `formula`: what stays, in one line; `cost`: of choosing k of v tokens.
    * `mixes`: True when kept tokens take in others.

    An attribute docstring under an option says what it does; it becomes the comment beside it in
    the option's file, and a row on the method's page.
    """

    reduces: ClassVar[bool] = True
    watches: ClassVar[bool] = False
    site: ClassVar[str] = "decoder layer"
    paper: ClassVar[Paper | str] = ""
    formula: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    mixes: ClassVar[bool] = False
    training: bool = False
    """Whether it learns although the model may not; for strategies that own parameters."""

    @property
    def needs(self) -> frozenset[str]:
        """The evidence that it reads; none unless a method says otherwise."""
        return frozenset()

    @property
    def positions(self) -> Positions:
        """The position rule of its paper."""
        return "keep"

    @property
    def reads_text(self) -> bool:
        """Whether its choice depends on the question."""
        return False

    @property
    def acts_on_pixels(self) -> bool:
        """Whether its whole work is that of `prepare`, so that no model can be reduced by it."""
        return self.site == "pictures"

    def prepare(self, processor: Any, images: Sequence[Any], keep: float) -> Prepared:
        """The pictures as the processor is to get them; as they are unless a method says otherwise.

        Args:
            processor: the checkpoint's, with its tokenizer.
            images: PIL pictures.
            keep: the share of their visual tokens that is to reach the language model.
        """
        return Prepared(images)

    @abstractmethod
    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """Which of `tokens` stay: exactly `budget[i]` of sample i (never more than it has)."""

    @abstractmethod
    def scheduler(self) -> Scheduler:
        """The paper's own schedule, used when the caller names none."""


class Scorer(Strategy):
    """A strategy that keeps the tokens with the highest score."""

    @abstractmethod
    def score(self, tokens: Tokens) -> Tensor:
        """(b, v) scores; higher is kept. Values at invalid tokens do not matter."""

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The `budget[i]` best-scored tokens of sample i, in reading order."""
        return select(self.score(tokens), tokens, budget)

    def scheduler(self) -> Scheduler:
        """A pyramid of four stages that halve the tokens, unless a method says otherwise."""
        from tokenreduce.schedulers.pyramid import Pyramid

        return Pyramid()


class TowerStrategy(Strategy):
    """A strategy that can also work inside a vision tower, between a layer's attention and MLP.

    There its `plan` merges (every token has a group), leaves the first `tokens.fixed` tokens alone,
    and is given `tokens.size`; `tokens["keys"]` are those of the layer's attention.
    """

    site: ClassVar[str] = "vision tower, decoder layer"
    tower: Handed | None = None
    """In a vision-language model: None works at decoder layers. `"merged"` and `"spread"` work in
    its vision tower; the language model then gets every group once, or at every place of its
    tokens."""

    @property
    @abstractmethod
    def proportional(self) -> bool:
        """Whether a token that stands for n patches weighs n times in the tower's attention."""

    @abstractmethod
    def counts(self, depth: int, tokens: int, fixed: int = 0) -> tuple[int, ...]:
        """How many tokens are left behind each layer of a tower of `depth` layers.

        Args:
            depth: layers of the tower.
            tokens: that the tower begins with, class tokens included.
            fixed: class tokens among them.
        """


strategies: Registry[type[Strategy]] = Registry("strategy", "tokenreduce.strategies")
"""Every known strategy: name -> class."""


def select(scores: Tensor, tokens: Tokens, budget: Sequence[int]) -> Plan:
    """The highest-scored tokens, `budget[i]` of sample i, in reading order.

    Ranking is done in fp32. Separator tokens are not ranked: one stays while its row has a kept
    token, and counts towards the budget. (When the last free place could only open a new row, the
    token of that row stays without its separator, so that the budget is met exactly.)
    """
    counts = [min(k, n) for k, n in zip(budget, tokens.counts, strict=True)]
    ranked = scores.detach().float().nan_to_num(nan=float("-inf"))
    ranked = ranked.masked_fill(~tokens.valid, float("-inf"))
    limit = torch.tensor(counts, device=scores.device)[:, None]
    separator = tokens.places.separator & tokens.valid
    ranked = ranked.masked_fill(separator, float("-inf"))
    order = ranked.argsort(dim=1, descending=True, stable=True)
    if tokens.separated:
        mask = _with_separators(order, separator, tokens, limit)
    else:
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        mask = rank < limit
    return Plan.of(mask, tokens, budget, score=scores)


def _with_separators(order: Tensor, separator: Tensor, tokens: Tokens, limit: Tensor) -> Tensor:
    """(b, v) kept mask of exactly `limit` tokens where separators follow their rows.

    Tokens are admitted in the order of their ranks; the first of a row also pays for the row's
    separator. One place may be left over where the next token would have cost two: it goes to the
    best token of a row that is open already, or else to the next token, without its separator.
    """
    v, line = order.shape[1], tokens.places.line
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(v, device=order.device).expand_as(order)
    )
    rankable = tokens.valid & ~separator

    def first(of: Tensor) -> Tensor:
        """The smallest rank among the `of` tokens of each token's row."""
        ranks = torch.where(of, rank, v)
        # rows are numbered at layer 0: there may be more of them than tokens are left
        rows = ranks.new_full((ranks.shape[0], max(tokens.original, v)), v)
        return rows.scatter_reduce(1, line, ranks, "amin").gather(1, line)

    pays = rankable & (first(rankable) == rank) & (first(separator) < v)
    price = (rankable.long() + pays.long()).gather(1, order)
    admitted = (price.cumsum(dim=1) <= limit) & rankable.gather(1, order)
    mask = torch.zeros_like(admitted).scatter_(1, order, admitted)
    left = limit - torch.where(admitted, price, 0).sum(dim=1, keepdim=True)
    opened = first(mask) < v
    waiting = rankable & ~mask
    queue = torch.where(waiting, torch.where(opened, rank, rank + v), 2 * v)
    extra = torch.zeros_like(mask).scatter_(1, queue.argmin(dim=1, keepdim=True), True)
    return mask | (separator & opened) | (extra & waiting & (left > 0))
