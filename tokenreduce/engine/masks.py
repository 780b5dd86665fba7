"""Attention masks for shorter sequences, gathered from the one that the model built.

Gathering keeps causal, padding, sliding-window and block masks exact without knowing which of them
it is. Shapes: b samples, q physical queries, k physical keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query may see a key, by (sample, head, query, key): flex attention's `mask_mod`."""


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
) -> Any:
    """The mask of the tokens that are left.

    Args:
        mask: what the model built: None, (b, 1, l, l_k) bool or float, (b, l_k) for flash, or a
            `BlockMask` for flex attention.
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
        if "flex" in kind:
            return _blocks(_causal, queries, keys, start, total, total)
        seen = (keys[:, None, None, :] <= queries[:, None, :, None]) & (keys >= 0)[:, None, None, :]
        return seen if kind == "sdpa" else _additive(seen, dtype)
    if hasattr(mask, "mask_mod"):
        return _blocks(mask.mask_mod, queries, keys, start, total, mask.seq_lengths[1])
    if not isinstance(mask, Tensor):
        raise ValueError(
            f"attention masks of type {type(mask).__name__} cannot be shortened: load the model "
            "with attn_implementation='sdpa', 'eager' or 'flex_attention'"
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


def _blocks(rule: Rule, queries: Tensor, keys: Tensor, start: int, total: int, width: int) -> Any:
    """A flex `BlockMask` (b, 1, q, k) of the tokens that are left.

    Its rule is the model's own, asked about the rows and columns of these tokens.

    Args:
        rule: of a mask that ends at logical key `total` and is `width` keys wide.
        queries: (b, q) absolute logical indices.
        keys: (b, k) likewise, -1 for filler.
        start: logical index of the first query of this pass.
        total: logical number of keys.
        width: of the model's mask.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    seen = _seen(rule, queries, keys, start, total - width)
    b, (q, k) = len(queries), (queries.shape[1], keys.shape[1])
    return create_block_mask(seen, B=b, H=None, Q_LEN=q, KV_LEN=k, device=str(keys.device))


def _seen(rule: Rule, queries: Tensor, keys: Tensor, start: int, first: int) -> Rule:
    """The rule of a mask over the tokens at `queries` and `keys`; `first` is its first key."""
    row, column = (queries - start).clamp(min=0), (keys - first).clamp(min=0)
    inside = (keys >= 0) & (keys >= first)

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return rule(b, h, row[b, q], column[b, k]) & inside[b, k]

    return seen


def _causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def visible(mask: Any, queries: Tensor, keys: Tensor, *, start: int, total: int) -> Tensor:
    """(b, 1, q, k) True where a query may see a key; the rows that scores are computed for."""
    present = (keys >= 0)[:, None, None, :]
    if hasattr(mask, "mask_mod"):
        from torch.nn.attention.flex_attention import create_mask

        rule = _seen(mask.mask_mod, queries, keys, start, total - mask.seq_lengths[1])
        b, (q, k) = len(queries), (queries.shape[1], keys.shape[1])
        seen: Tensor = create_mask(rule, B=b, H=None, Q_LEN=q, KV_LEN=k, device=str(keys.device))
        return seen
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
