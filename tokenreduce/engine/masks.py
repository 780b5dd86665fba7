"""Attention masks for shorter sequences, gathered from the one that the model built.

Gathering keeps causal, padding, sliding-window and block masks exact without knowing which of them
it is. Shapes: b samples, q physical queries, k physical keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gathered(
    mask: Any,
    queries: Tensor,
    keys: Tensor,
    *,
    start: int,
    total: int,
    ragged: bool,
    kind: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """The mask of the tokens that are left.

    Args:
        mask: what the model built: None, (b, 1, l, l_k) bool or float, or (b, l_k) for flash.
        queries: (b, q) absolute logical index of every query, -1 for filler.
        keys: (b, k) the same for the keys.
        start: logical index of the first query of this pass.
        total: logical number of keys that the model's mask ends at.
        ragged: whether the keys hold filler.
        kind: the attention implementation.
        dtype: the model's, for float masks.

    Raises:
        ValueError: a kind of mask that cannot be gathered.
    """
    if mask is None:
        if not ragged and (queries.shape[1] == keys.shape[1] or queries.shape[1] == 1):
            return None
        if "flash" in kind:
            return keys >= 0 if ragged else None
        seen = (keys[:, None, None, :] <= queries[:, None, :, None]) & (keys >= 0)[:, None, None, :]
        return seen if kind == "sdpa" else _additive(seen, dtype)
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"attention masks of type {type(mask).__name__} cannot be shortened: load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    given: Tensor = mask
    return _rows_and_columns(given, queries, keys, start, total)


def _rows_and_columns(
    mask: Tensor, queries: Tensor, keys: Tensor, start: int, total: int
) -> Tensor:
    column = keys - (total - mask.shape[-1])
    inside = column >= 0
    column = column.clamp(min=0)
    if mask.dim() == 2:
        return mask.gather(1, column) * inside.to(mask.dtype)
    mask = mask.expand(queries.shape[0], -1, -1, -1)
    heads = mask.shape[1]
    row = (queries - start).clamp(min=0)
    rows = row[:, None, :, None].expand(-1, heads, -1, mask.shape[-1])
    if not (row.shape[1] == mask.shape[2] == 1):
        mask = mask.gather(2, rows)
    columns = column[:, None, None, :].expand(-1, heads, mask.shape[2], -1)
    mask = mask.gather(3, columns)
    seen = inside[:, None, None, :]
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def visible(mask: Any, queries: Tensor, keys: Tensor, *, start: int, total: int) -> Tensor:
    """(b, 1, q, k) True where a query may see a key; the rows that scores are computed for."""
    present = (keys >= 0)[:, None, None, :]
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        seen = (keys[:, None, None, :] <= queries[:, None, :, None]) & present
        if isinstance(mask, Tensor):
            column = (keys - (total - mask.shape[-1])).clamp(min=0)
            seen = seen & mask.gather(1, column).bool()[:, None, None, :]
        return seen
    full = gathered(
        mask, queries, keys, start=start, total=total, ragged=True, kind="sdpa", dtype=mask.dtype
    )
    assert full is not None  # only a None mask gives None
    seen = full if full.dtype == torch.bool else full > torch.finfo(full.dtype).min / 2
    return seen & present


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    zero = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, zero, torch.finfo(dtype).min)
