"""How gradients of a model's loss reach the scores of a hard choice.

A hard choice has no gradient. The one piece that gives it some is `gated`: kept tokens pass a gate
whose value is one, and whose gradient is that of a soft choice (straight-through), or, in training
alone, whose value is the soft choice itself.

Shapes: b samples, v visual tokens, k kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tokenreduce.selection import candidates, kept
from tokenreduce.tokens import Gate, Plan, Tokens

GateKind = Literal["straight_through", "soft", "none"]

HALVINGS = 40
"""Steps of the search for a threshold: more than fp32 can tell apart."""


def gated(
    plan: Plan,
    scores: Tensor,
    tokens: Tokens,
    gate: GateKind = "straight_through",
    temperature: float = 1.0,
) -> Plan:
    """`plan` with a gate through which gradients reach `scores`.

    The soft choice is `soft_top`. A gate that is shut lets through the mean of the sample's visual
    tokens, not zero: decoder layers normalise, and would not notice a token that is merely shorter.
    So the gradient says what the loss would become if a token told nothing of its own.

    Args:
        plan: the hard choice.
        scores: (b, v) with gradients.
        tokens: that the plan is about. Separators pass freely.
        gate: `"straight_through"` has the value one; `"soft"` the value of the soft choice.
        temperature: of the soft choice, in units of the scores.
    """
    among = candidates(tokens)
    chosen = (kept(plan, tokens) & among).sum(dim=1, keepdim=True)
    share = soft_top(scores, among, chosen, temperature).gather(1, plan.keep)
    value = share if gate == "soft" else (share - share.detach()) + 1
    fallback = among.float() / among.sum(dim=1, keepdim=True).clamp(min=1)
    return replace(plan, gate=Gate(value, fallback))


def soft_top(scores: Tensor, among: Tensor, k: Tensor, temperature: float = 1.0) -> Tensor:
    """(b, v) how far each token is among the `k` best: in (0, 1], of sum `k` where it may be.

    The shares are `sigmoid((score - t) / temperature)` with the threshold t at which they sum to k;
    t follows the scores, so that the gradient of every share sums to zero over the scores. (T. D.
    Ahle, "Differentiable top-k", 2022.) Where everything is kept, and outside of `among`, one.

    Args:
        scores: (b, v), any numbers.
        among: (b, v) True at the tokens that may be chosen.
        k: (b, 1) how many are.
        temperature: the lower, the nearer to a hard choice.
    """
    n = among.sum(dim=1, keepdim=True)
    whole = (k >= n) | (k <= 0)
    x = scores.float().masked_fill(~among, 0.0) / temperature
    with torch.no_grad():
        # where every share is k / n: not above the lowest score's place, nor below the highest's
        offset = torch.where(whole, 0.5, k / n.clamp(min=1)).logit()
        low = x.masked_fill(~among, torch.inf).amin(dim=1, keepdim=True) - offset
        high = x.masked_fill(~among, -torch.inf).amax(dim=1, keepdim=True) - offset
        low, high = (end.masked_fill(whole, 0.0) for end in (low, high))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            many = (x - middle).sigmoid().masked_fill(~among, 0.0).sum(dim=1, keepdim=True) > k
            low, high = torch.where(many, middle, low), torch.where(many, high, middle)
        threshold = (low + high) / 2
        share = (x - threshold).sigmoid()
        slope = (share * (1 - share)).masked_fill(~among, 0.0)
        slope = slope / slope.sum(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    # the derivative of the threshold, by the implicit function theorem; its value stays
    follows = ((x - x.detach()) * slope).sum(dim=1, keepdim=True)
    soft = (x - (threshold + follows)).sigmoid()
    return torch.where(whole | ~among, 1.0, soft)
