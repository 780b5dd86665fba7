"""Attention masks for shorter sequences, gathered from the one that the model built.

Gathering keeps causal, padding, sliding-window and block masks exact without knowing which of them
it is. Shapes: b samples, q physical queries, k physical keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query may see a key, by (sample, head, query, key): flex attention's `mask_mod`."""


@dataclass(frozen=True)
class Extent:
    """Which queries and keys a mask is wanted for, as absolute logical indices, -1 for filler.

    Attributes:
        queries: (b, q).
        keys: (b, k).
        start: logical index of the first query of this pass.
        total: logical number of keys, at which the model's mask ends.
    """

    queries: Tensor
    keys: Tensor
    start: int
    total: int


def gathered(mask: Any, at: Extent, *, ragged: bool, kind: str, dtype: torch.dtype) -> Any:
    """The mask of the tokens that are left.

    Args:
        mask: what the model built: None, (b, 1, l, l_k) bool or float, (b, l_k) for flash, or a
            `BlockMask` for flex attention.
        at: which tokens these are.
        ragged: whether the keys hold filler.
        kind: the attention implementation.
        dtype: the model's, for float masks.

    Raises:
        ValueError: a kind of mask that cannot be gathered.
    """
    queries, keys = at.queries, at.keys
    if mask is None:
        if not ragged and (queries.shape[1] == keys.shape[1] or queries.shape[1] == 1):
            return None
        if "flash" in kind:
            return keys >= 0 if ragged else None
        if "flex" in kind:
            return _blocks(_causal, at, at.total)
        seen = (keys[:, None, None, :] <= queries[:, None, :, None]) & (keys >= 0)[:, None, None, :]
        return seen if kind == "sdpa" else _additive(seen, dtype)
    if hasattr(mask, "mask_mod"):
        return _blocks(mask.mask_mod, at, mask.seq_lengths[1])
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"attention masks of type {type(mask).__name__} cannot be shortened: load the model "
            "with attn_implementation='sdpa', 'eager' or 'flex_attention'"
        )
    return _rows_and_columns(mask, at)


def _rows_and_columns(mask: Tensor, at: Extent) -> Tensor:
    queries, column = at.queries, at.keys - (at.total - mask.shape[-1])
    inside = column >= 0
    column = column.clamp(min=0)
    if mask.dim() == 2:
        return mask.gather(1, column) * inside.to(mask.dtype)
    mask = mask.expand(queries.shape[0], -1, -1, -1)
    heads = mask.shape[1]
    row = (queries - at.start).clamp(min=0)
    rows = row[:, None, :, None].expand(-1, heads, -1, mask.shape[-1])
    if not (row.shape[1] == mask.shape[2] == 1):
        mask = mask.gather(2, rows)
    columns = column[:, None, None, :].expand(-1, heads, mask.shape[2], -1)
    mask = mask.gather(3, columns)
    seen = inside[:, None, None, :]
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _blocks(rule: Rule, at: Extent, width: int) -> Any:
    """A flex `BlockMask` (b, 1, q, k) of the tokens that are left.

    Its rule is the model's own, asked about the rows and columns of these tokens.

    Args:
        rule: of a mask that is `width` keys wide.
        at: which tokens are left.
        width: of the model's mask.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    seen = _seen(rule, at, at.total - width)
    return create_block_mask(seen, H=None, **_sizes(at))


def _seen(rule: Rule, at: Extent, first: int) -> Rule:
    """The rule of a mask over the tokens of `at`; `first` is its first key."""
    row, column = (at.queries - at.start).clamp(min=0), (at.keys - first).clamp(min=0)
    inside = (at.keys >= 0) & (at.keys >= first)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return rule(b, h, row[b, q], column[b, k]) & inside[b, k]

    return seen


def _sizes(at: Extent) -> dict[str, Any]:
    """Of a block mask."""
    (b, q), k = at.queries.shape, at.keys.shape[1]
    return {"B": b, "Q_LEN": q, "KV_LEN": k, "device": str(at.keys.device)}


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def visible(mask: Any, at: Extent) -> Tensor:
    """(b, 1, q, k) True where a query may see a key; the rows that scores are computed for."""
    queries, keys = at.queries, at.keys
    present = (keys >= 0)[:, None, None, :]
    if hasattr(mask, "mask_mod"):
        from torch.nn.attention.flex_attention import create_mask

        rule = _seen(mask.mask_mod, at, at.total - mask.seq_lengths[1])
        seen: Tensor = create_mask(rule, H=None, **_sizes(at))
        return seen
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        seen = (keys[:, None, None, :] <= queries[:, None, :, None]) & present
        if isinstance(mask, Tensor):
            column = (keys - (at.total - mask.shape[-1])).clamp(min=0)
            seen = seen & mask.gather(1, column).bool()[:, None, None, :]
        return seen
    full = gathered(mask, at, ragged=True, kind="sdpa", dtype=mask.dtype)
    assert full is not None  # only a None mask gives None
    seen = full if full.dtype == torch.bool else full > torch.finfo(full.dtype).min / 2
    return seen & present


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, zero, torch.finfo(dtype).min)
