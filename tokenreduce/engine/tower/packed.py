"""Merging in a tower that is given all pictures as one sequence, with cumulated lengths.

Tokens merge within a block: what the first layer's attention keeps apart, a picture, a frame or a
window. The strategy sees a row per block; what it decides becomes one plan for the sequence.

Shapes: o tokens that the tower begins with, p tokens left, k kept, n blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.hooks import Hook, bind
from tokenreduce.engine.tower.merging import CARRIED, LayerState, Merged, Merging
from tokenreduce.tokens import Merge, Places, Plan, Tokens
from tokenreduce.tower import PackedTower


@dataclass(frozen=True)
class PackedMerged(Merged):
    """What was merged on the way to one layer; the whole sequence is one row.

    Attributes:
        blocks: tokens of every block as the tower begins, and after each layer (host).
        seen: per layer so far, the cumulated lengths that it was given; None: the blocks.
    """

    blocks: Sequence[tuple[int, ...]]
    seen: dict[int, Tensor | None]

    def bounds(self, layer: int, whole: Tensor) -> Tensor:
        """(m + 1,) cumulated lengths at the input of `layer`, from those of the whole sequence."""
        began, now = (
            torch.tensor([0, *accumulate(self.blocks[i])], device=whole.device, dtype=whole.dtype)
            for i in (0, layer)
        )
        return now[torch.searchsorted(began, whole)]

    def pairs(self, layer: int) -> tuple[int, int]:
        """Queries times keys in `layer`: as it was, and had nothing been merged (sync)."""
        whole = self.seen[layer]
        if whole is None:
            return _pairs(self.blocks[layer]), _pairs(self.blocks[0])
        return _pairs(self.bounds(layer, whole).diff().tolist()), _pairs(whole.diff().tolist())

    def spread(self, x: Tensor, layer: int) -> Tensor:
        """(…, p, d) -> (…, o, d); what was made of it after the layers is not of tokens."""
        return whole(x)


class PackedMerging(Merging):
    """Puts the hooks on a packed tower, and on the modules that read the output of its layers."""

    tower: PackedTower

    def __init__(self, tower: PackedTower, *args: Any, **kwargs: Any) -> None:
        super().__init__(tower, *args, **kwargs)
        for reader in tower.readers:
            self.handles.append(reader.register_forward_pre_hook(Hook(_whole)))

    def _enter(
        self, i: int, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given, tower = bind(names, args, kwargs), self.tower
        x: Tensor = given[names[0]]
        merged: PackedMerged | None = getattr(x, CARRIED, None)
        if merged is None:
            merged = self._nothing(x, given)
            self._follows(i, merged)
        merged = replace(merged, seen={**merged.seen, i: tower.bounds(given)})
        # for the norm in front, which checkpointing may run again alone
        setattr(x, CARRIED, merged)
        if not merged.plans:
            return None
        changed = tower.shorter(given, merged.first[0], lambda whole: merged.bounds(i, whole))
        if self.strategy.proportional:
            changed[tower.mask] = changed[tower.mask] + merged.size[0].log().to(x.dtype)
        rest = {name: given[name] for name in given if name != names[0]}
        return (x,), {**rest, **changed}

    def _nothing(self, x: Tensor, given: dict[str, Any]) -> PackedMerged:
        lengths = self.tower.blocks(given)
        if lengths is None:
            raise ValueError(
                "the vision tower's attention does not say where a picture ends: load it with "
                "attn_implementation='sdpa' or 'eager'"
            )
        counts = cache(self.counts)  # thousands of windows are of few sizes
        after = [tuple(counts(n)[i] for n in lengths) for i in range(len(self.tower.layers))]
        totals = tuple(map(sum, after))
        blocks = [tuple(lengths), *after]
        return PackedMerged.nothing(totals, 1, x.shape[-2], x.device, blocks=blocks, seen={})

    def _plan(self, x: Tensor, here: LayerState, keys: Tensor) -> Plan:
        merged, device = here.merged, x.device
        assert isinstance(merged, PackedMerged)  # `_nothing` made it
        have, left = merged.blocks[here.layer], merged.blocks[here.layer + 1]
        block, place, index = (part.to(device, non_blocking=True) for part in _rows(have))
        valid = torch.zeros_like(index, dtype=torch.bool)
        valid[block, place] = True

        def keys_of_rows() -> Tensor:
            """(n, h, v, e)."""
            return self.tower.keys(keys)[0].transpose(0, 1)[index].transpose(1, 2)

        tokens = Tokens(
            hidden=x.view(-1, x.shape[-1])[index],
            valid=valid,
            origin=merged.first[0][index],
            places=Places.unknown(valid),
            counts=have,
            original=max(merged.blocks[0]),
            layer=here.layer,
            seed=self.seed,
            size=merged.size[0][index],
            evidence={"keys": keys_of_rows},
        )
        plan = self._planned(tokens, left)
        content = plan.content
        assert isinstance(content, Merge)  # `_planned` checks it
        kept, slot, _ = (part.to(device, non_blocking=True) for part in _rows(left))
        start = torch.tensor([0, *accumulate(left)][:-1], device=device)
        keep = index[kept, plan.keep[kept, slot]]
        group = content.group[block, place] + start[block]
        weight = None if content.weight is None else content.weight[block, place][None]
        return Plan(keep[None], None, Merge(group[None], weight))

    def _carry(self, i: int, x: Tensor, merged: Merged) -> None:
        super()._carry(i, x, merged)
        setattr(x, CARRIED, merged)


def whole(x: Tensor) -> Tensor:
    """What left a layer of a packed tower, at every place; anything else as it is."""
    merged = getattr(x, CARRIED, None)
    if not isinstance(merged, PackedMerged) or not merged.plans:
        return x
    return x.index_select(-2, merged.group[0])


def _whole(module: nn.Module, args: tuple[Any, ...]) -> Any:
    x, *rest = args
    return (whole(x), *rest)


def _rows(counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """On the host: the row and the place in it of every token (p,), and the tokens of each row.

    The last is (n, v): rows that are shorter end in tokens that are none of theirs.
    """
    lengths = torch.tensor(counts)
    first = lengths.cumsum(0) - lengths
    row = torch.repeat_interleave(lengths)
    place = torch.arange(len(row)) - first[row]
    index = first[:, None] + torch.arange(max(counts, default=0))
    return row, place, index.clamp(max=len(row) - 1)


def _pairs(lengths: Sequence[int]) -> int:
    return sum(n**2 for n in lengths)
