"""The law on values and devices finds what a GPU would wait for or refuse, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.testing import choices

Score = Callable[[tr.Tokens, Tensor], Tensor]


def _flips(tokens: tr.Tokens, x: Tensor) -> Tensor:
    return -x if x.max() > 3 else x


WAITS: dict[str, Score] = {
    "item": lambda tokens, x: x * float(x.sum().item() > 0),
    "mask": lambda tokens, x: x - x[tokens.valid].mean(),
    "if": _flips,
    "list": lambda tokens, x: x * len(x[0].tolist()),
    "cpu": lambda tokens, x: x + x.cpu().sum().to(x.device),
    "to": lambda tokens, x: x.to("cpu").to(x.device),
    "numpy": lambda tokens, x: x * x.detach().numpy().max(),
}


class Scored(tr.Scorer):
    """A score by one expression."""

    def __init__(self, expression: Score) -> None:
        self.expression = expression

    def score(self, tokens: tr.Tokens) -> Tensor:
        """(b, v) of the lengths of the hidden states."""
        return self.expression(tokens, tokens.hidden.float().norm(dim=-1))


@pytest.mark.parametrize("way", WAITS)
def test_values_that_are_asked_for(way: str) -> None:
    with pytest.raises(AssertionError, match=r"asks a tensor for its values .* tokens\.counts"):
        choices.asks_for_no_values_and_stays_on_its_device(Scored(WAITS[way]))


def test_tensors_on_another_device() -> None:
    elsewhere = Scored(lambda tokens, x: x + torch.arange(x.shape[1]))
    with pytest.raises(AssertionError, match=r"make new ones with device=tokens\.hidden\.device"):
        choices.asks_for_no_values_and_stays_on_its_device(elsewhere)


class First(tr.Strategy):
    """Keeps the first tokens, with indices of a CPU."""

    def plan(self, tokens: tr.Tokens, budget: tuple[int, ...]) -> tr.Plan:
        """The first of each sample."""
        keep = torch.arange(max(budget)).expand(len(budget), -1)
        return tr.Plan(keep, keep < torch.tensor(budget)[:, None])

    def scheduler(self) -> tr.Scheduler:
        """Once."""
        return tr.Single(0, 0.5)


def test_a_plan_on_another_device() -> None:
    with pytest.raises(AssertionError, match="gives a plan on cpu for tokens on cuda"):
        choices.asks_for_no_values_and_stays_on_its_device(First())


@dataclass
class Besides(First):
    """Keeps the first tokens where they are, and says more of them on a CPU."""

    name: str

    def plan(self, tokens: tr.Tokens, budget: tuple[int, ...]) -> tr.Plan:
        """The first of each sample."""
        b, k, v = len(budget), max(budget), tokens.valid.shape[1]
        keep = torch.arange(k, device=tokens.hidden.device).expand(b, -1)
        there = torch.zeros(b, v, dtype=torch.long, device=keep.device)
        said = {
            "valid": {"valid": torch.ones(b, k)},
            "content.group": {"content": tr.Merge(torch.ones(b, v))},
            "content.weight": {"content": tr.Merge(there, torch.ones(b, v))},
            "content.share": {"content": tr.Mix(torch.ones(b, k, v))},
            "gate.value": {"gate": tr.Gate(torch.ones(b, k))},
            "gate.fallback": {"gate": tr.Gate(keep, torch.ones(b, v))},
            "score": {"score": torch.ones(b, v)},
        }
        return replace(tr.Plan(keep), **said[self.name])


PARTS = "valid", "content.group", "content.weight", "content.share", "gate.value", "gate.fallback"


@pytest.mark.parametrize("name", [*PARTS, "score"])
def test_any_part_of_a_plan_on_another_device(name: str) -> None:
    with pytest.raises(AssertionError, match=f"gives a plan on cpu .*`{name}`"):
        choices.asks_for_no_values_and_stays_on_its_device(Besides(name))


def test_what_asks_for_nothing_passes() -> None:
    choices.asks_for_no_values_and_stays_on_its_device(Scored(lambda tokens, x: x))
    choices.asks_for_no_values_and_stays_on_its_device(choices.own(tr.ScorerMLP()))
