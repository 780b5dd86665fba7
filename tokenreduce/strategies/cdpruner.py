"""CDPruner: maximising conditional diversity, section 3 of its paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tokenreduce.paper import Paper
from tokenreduce.scheduler import Scheduler
from tokenreduce.schedulers.single import Single
from tokenreduce.selection import candidates, one_by_one, select, within_own_budget
from tokenreduce.strategy import Strategy, strategies
from tokenreduce.tokens import Plan, Tokens, gather

LEAST = 1e-6
"""Relevance of the least relevant token, so that it may be chosen at all."""
EPSILON = 1e-8
"""Share of a token's own kernel value below which nothing of it is left to add."""

PAPER = Paper(
    key="zhang2025cdpruner",
    title="Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning "
    "in {MLLMs}",
    authors="Zhang, Qizhe and Liu, Mengzhen and Li, Lichen and Lu, Ming and Zhang, Yuan and "
    "Pan, Junwen and She, Qi and Zhang, Shanghang",
    year=2025,
    arxiv="2506.10967",
    venue="Advances in Neural Information Processing Systems (NeurIPS)",
    code="Theia-4869/CDPruner, Apache-2.0",
)


@strategies.register("cdpruner")
@dataclass
class CDPruner(Strategy):
    """Keep tokens that matter to the question and are unlike each other.

    A determinantal point process, conditioned on the question: with r the relevance of the tokens,
    scaled to 0..1 within a sample, and S the cosines of their hidden states, tokens are chosen one
    by one so that the determinant of the kernel r S r grows most. Once no token adds anything (more
    tokens than the hidden states' rank), the most relevant follow.

    Relevance is the cosine of a token's embedding, as the language model gets it, with the mean
    embedding of the question: the paper's rule where a model has no text tower of its own. A sample
    without a question is chosen for diversity alone. The tokens of all pictures of a sample are
    chosen together.

    Deviations from the original: with CLIP towers it takes minus the cosine of CLIP's own picture
    and text embeddings, which a stock model does not have; hand it in as `relevance`. It scales
    relevance over the batch, so that batch mates change the choice, and gives NaN beyond the rank.
    """

    relevance: Callable[[Tokens], Tensor] | None = None
    """From Python: tokens -> (b, v), in place of the cosine with the question; higher is more."""

    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "text_embedding", "text_behind"})
    reads_text: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPER
    formula: ClassVar[str] = (
        "the k tokens, picked greedily, of largest det(diag(r) C diag(r)): r relevance, C cosines"
    )
    cost: ClassVar[str] = "O(k v d) in k steps; memory O((d + min(k, d)) v)"

    def plan(self, tokens: Tokens, budget: Sequence[int]) -> Plan:
        """The first tokens of the greedy order."""
        among = candidates(tokens)
        relevance = (self.relevance or likeness_to_question)(tokens).float()
        order = greedy(scaled(relevance, among), tokens.hidden, among, max(budget, default=0))
        return select(within_own_budget(order, budget), tokens, budget)

    def scheduler(self) -> Scheduler:
        """Before the language model, to a ninth: 64 of LLaVA-1.5's 576."""
        return Single(layer=0, keep=1 / 9)


def likeness_to_question(tokens: Tokens) -> Tensor:
    """(b, v) cosine of every token's embedding with the mean of the question's."""
    asked = tokens["text_behind"].float()[..., None]
    mean = (tokens["text_embedding"].float() * asked).sum(dim=1) / asked.sum(dim=1).clamp(min=1)
    own = gather(tokens["embedding"].float(), tokens.origin)
    return cosine_similarity(own, mean[:, None], dim=-1)


def scaled(relevance: Tensor, among: Tensor) -> Tensor:
    """(b, v) relevance between (nearly) 0 and 1 in every sample; 1 where all are alike."""
    low = relevance.masked_fill(~among, float("inf")).amin(dim=1, keepdim=True)
    high = relevance.masked_fill(~among, float("-inf")).amax(dim=1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (relevance - low + LEAST) / spread, 1.0)


def greedy(relevance: Tensor, x: Tensor, among: Tensor, n: int) -> Tensor:
    """(b, v) scores that rank the first `n` in the order in which the determinant grows most.

    Source: fast greedy MAP inference for DPPs (Chen et al., 2018), an incremental Cholesky
    decomposition; in fp64, where there is any: small remainders of fp32 are noise. The kernel of
    rows d wide is of rank d at most, so that its decomposition has no more than d rows.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    relevance = relevance.detach().to(wide)
    unit = normalize(x.detach().to(wide), dim=-1) * relevance[..., None]
    own = unit.square().sum(dim=2)
    left, step = own, 0
    rows = unit.new_zeros(len(x), min(n, x.shape[2]), x.shape[1])
    sample = torch.arange(len(x), device=x.device)

    def after(pick: Tensor, _: Tensor) -> Tensor:
        """(b, v) what is left of every token given the chosen ones."""
        nonlocal left, step
        if step < rows.shape[1]:
            column = (unit @ unit[sample, pick, :, None])[..., 0]
            column = column - (rows[sample, :step, pick][:, None] @ rows[:, :step])[:, 0]
            there = left[sample, pick]
            adds = there > EPSILON * own[sample, pick]
            rows[:, step] = column * torch.where(adds, there, 1).rsqrt()[:, None] * adds[:, None]
            left = left - rows[:, step].square()
        step += 1
        return torch.where(left > EPSILON * own, left, relevance - 4)

    return one_by_one(own, among, n, after)
