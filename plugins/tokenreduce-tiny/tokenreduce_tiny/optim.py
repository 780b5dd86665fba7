"""Muon for the matrices and AdamW for everything else, as one optimiser with one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a matrix is
replaced by the nearest semi-orthogonal matrix, found by five Newton-Schulz steps. Its step is
scaled by 0.2 sqrt(max(rows, columns)) so that it is as long as AdamW's (Liu et al. 2025, arXiv
2502.16982, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonAdamW(torch.optim.Optimizer):
    """Groups that carry `muon=True` hold matrices and are stepped by Muon, the others by AdamW.

    Weight decay is decoupled in both. Nothing but tensors and numbers is kept in the state, so the
    Trainer's own checkpointing restores it exactly.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        defaults = {
            "lr": 1e-3, "weight_decay": 0.0, "muon": False,
            "momentum": 0.95, "betas": (0.9, 0.98), "eps": 1e-8,
        }  # fmt: skip
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all groups."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._step_muon(weights, group)
            else:
                self._step_adamw(weights, group)
        return loss

    def _step_muon(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for weight in weights:
            by_shape.setdefault(weight.shape, []).append(weight)
        for (rows, columns), same in by_shape.items():
            directions = []
            for weight in same:
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                gradient = weight.grad
                assert gradient is not None  # `step` takes weights with a gradient only
                momentum.lerp_(gradient, 1 - group["momentum"])
                directions.append(gradient.lerp(momentum, group["momentum"]))
            length = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            # Matrices of one shape are orthogonalised together: few large products, not many small.
            for weight, direction in zip(same, orthogonalise(torch.stack(directions)), strict=True):
                weight.add_(direction, alpha=-length)

    def _step_adamw(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        first_decay, second_decay = group["betas"]
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros(())
                state["first"] = torch.zeros_like(weight)
                state["second"] = torch.zeros_like(weight)
            state["step"] += 1
            steps = int(state["step"])
            state["first"].lerp_(weight.grad, 1 - first_decay)
            state["second"].mul_(second_decay).addcmul_(
                weight.grad, weight.grad, value=1 - second_decay
            )
            scale = (state["second"] / (1 - second_decay**steps)).sqrt_().add_(group["eps"])
            weight.addcdiv_(state["first"], scale, value=-group["lr"] / (1 - first_decay**steps))


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The semi-orthogonal matrix nearest to each of a stack (n, rows, columns), approximately."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.transpose(1, 2) if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def build_optimizer(
    named: Iterable[tuple[str, torch.nn.Parameter]], matrix_lr: float, other_lr: float, decay: float
) -> MuonAdamW:
    """Matrices inside the network to Muon; embeddings, heads, biases and gains to AdamW."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in named:
        if not weight.requires_grad:
            continue
        inner = weight.ndim == 2 and "embed" not in name and "heads" not in name
        (matrices if inner else others).append(weight)
    groups: list[dict[str, Any]] = [{"params": others, "lr": other_lr}]
    if matrices:
        groups.append({"params": matrices, "lr": matrix_lr, "muon": True, "weight_decay": decay})
    return MuonAdamW(groups)


def build_schedule(optimizer: MuonAdamW, knots: Sequence[Sequence[float]]) -> LambdaLR:
    """The share of the full rate at each step, linear between knots (step, share)."""
    steps, shares = zip(*knots, strict=True)
    return LambdaLR(optimizer, lambda step: float(np.interp(step, steps, shares)))
