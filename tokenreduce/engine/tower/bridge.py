"""A vision tower that runs on fewer tokens inside a vision-language model.

What leaves the tower is spread over its groups again: the projector and the placeholders find what
they always do. Where the language model is to get every group once, pictures carry the groups, and
the input of layer 0 merges their tokens, which are equal.

Shapes: n pictures of the tower's batch, o tokens that the tower begins with, c class tokens,
b samples, v visual tokens, k groups.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.hooks import Hook
from tokenreduce.engine.tower.merging import Merged
from tokenreduce.geometry import Picture
from tokenreduce.tokens import Merge, Plan
from tokenreduce.tower import Tower

GROUP = "tower_group"
"""Under which a picture carries the group of each token; separators have groups of their own."""


class TowerBridge:
    """Spreads what leaves a tower whose layers merge, and tells pictures their groups.

    Args:
        module: the tower as its model calls it.
        tower: its facts.
        expanded: whether the language model gets as many tokens as without merging.
    """

    def __init__(self, module: nn.Module, tower: Tower, expanded: bool) -> None:
        self.tower, self.expanded = tower, expanded
        self._local = threading.local()
        self._handle: Any = module.register_forward_hook(Hook(self._leave), always_call=True)

    def remove(self) -> None:
        """Takes the hook off."""
        self._handle.remove()

    def passed(self, merged: Merged) -> None:
        """Told of every pass, after the tower's last layer and in its thread."""
        self._local.merged = merged

    @contextmanager
    def encoding(self) -> Iterator[list[Tensor]]:
        """The groups of every pass through the tower inside the block, (n, o) each."""
        found: list[Tensor] = []
        self._local.passes = found
        try:
            yield found
        finally:
            self._local.passes = None

    def grouped(self, pictures: Sequence[Picture], passes: Sequence[Tensor]) -> list[Picture]:
        """The pictures of one encoder call, each token with its group (sync: once per call)."""
        if self.expanded or not passes:
            return list(pictures)
        rows, first = [], 0
        for group in passes:
            group = group[:, self.tower.classes :].cpu()
            n, o = group.shape[0], int(group.max()) + 1
            rows.append((group + o * torch.arange(n)[:, None] + first).flatten())
            first += n * o
        groups = torch.cat(rows)
        return [replace(x, measures={**x.measures, GROUP: _of(x, groups)}) for x in pictures]

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        merged: Merged | None = getattr(self._local, "merged", None)
        self._local.merged = None
        if merged is None or output is None:  # another thread's, or the tower raised
            return None
        passes = getattr(self._local, "passes", None)
        if passes is not None:
            passes.append(merged.group_after(self.tower.feature))
        if not merged.plans:
            return None
        last = len(self.tower.layers) - 1
        output.last_hidden_state = merged.spread(output.last_hidden_state, last)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(
                None if x is None else merged.spread(x, i - 1)  # not every one is kept
                for i, x in enumerate(output.hidden_states)
            )
        return output


def plan(samples: Sequence[Sequence[Picture]], valid: Tensor) -> tuple[Plan, tuple[int, ...]]:
    """Every group once, where its first token lies; and how many groups a sample has.

    Args:
        samples: the pictures of each; those of unknown origin have a group for every token.
        valid: (b, v) True at a sample's visual tokens.
    """
    v = valid.shape[1]
    keeps, groups = [], []
    for pictures in samples:
        numbers, first = [torch.zeros(0, dtype=torch.long)], 0
        for picture in pictures:
            number = picture.measures.get(GROUP)
            number = torch.arange(len(picture)) if number is None else _ranked(number)
            numbers.append(number + first)
            first += int(number.max()) + 1 if len(number) else 0
        group = torch.cat(numbers)
        keep = torch.full((first,), v).scatter_reduce(0, group, torch.arange(len(group)), "amin")
        keeps.append(keep)
        groups.append(nn.functional.pad(group, (0, v - len(group)), value=-1))
    counts = tuple(len(keep) for keep in keeps)
    keep = nn.utils.rnn.pad_sequence(keeps, batch_first=True).to(valid.device)
    there = torch.arange(keep.shape[1]) < torch.tensor(counts)[:, None]
    even = len(set(counts)) <= 1
    group = torch.stack(groups).to(valid.device)
    return Plan(keep, None if even else there.to(valid.device), Merge(group)), counts


def _ranked(number: Tensor) -> Tensor:
    """(v,) numbers from 0 in the order in which they first occur."""
    values, at = torch.unique(number, return_inverse=True)
    place = torch.arange(len(number))
    first = torch.full((len(values),), len(number)).scatter_reduce(0, at, place, "amin")
    rank = torch.empty_like(first).scatter_(0, first.argsort(), torch.arange(len(first)))
    return rank[at]


def _of(picture: Picture, groups: Tensor) -> Tensor:
    """(v,) the group of every token; a separator, which is of no patch, stays alone."""
    assert picture.patches is not None  # `check_patches` saw to it
    patch = picture.patches[:, 0]
    alone = -1 - torch.arange(len(patch))
    return torch.where(patch < 0, alone, groups[patch.clamp(min=0)])
