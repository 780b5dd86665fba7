"""Attention of a few query rows on the visual tokens: no l x l map, no second run of a layer.

Only the projections that a score needs are computed; what the layer before has just computed is
captured as it runs. Softmax over the whole visible row, in fp32.
Shapes: b samples, r rows, p physical tokens, v visual tokens, h heads, e head width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import Adapter, Rotary
from tokenreduce.engine.masks import visible
from tokenreduce.engine.sequence import Layout, Sequence

ROWS_AT_ONCE = 256
"""Query rows per block when every token asks: bounds memory at (h, 256, p) floats per sample."""


@dataclass
class LayerView:
    """One decoder layer in one forward pass, as far as attention is concerned.

    Attributes:
        hidden: (b, p, d) the layer's input; `layout` says which tokens these are.
        rotary: cos and sin of these tokens.
        mask: the model's own (logical) mask for this layer.
        past: keys and their logical order (b, p_past) cached before this pass, if any.
    """

    adapter: Adapter
    seq: Sequence
    layer: nn.Module
    layout: Layout
    hidden: Tensor
    rotary: Rotary
    mask: Any
    past: tuple[Tensor, Tensor] | None

    def asked(self, projected_keys: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """(b, h, v) attention of the asking tokens, averaged over them."""
        rows, valid = self._asking()
        if queries is None:
            queries = self.queries(rows)
        return self._mean(queries, self._keys(projected_keys), rows, valid)

    def received(
        self, projected_keys: Tensor | None = None, projected_queries: Tensor | None = None
    ) -> Tensor:
        """(b, h, v) attention from all tokens of the sequence, averaged over them."""
        queries = self.adapter.queries(self.layer, self.hidden, self.rotary, projected_queries)
        keys = self._keys(projected_keys)
        b, p = self.hidden.shape[:2]
        rows = torch.arange(p, device=keys.device).expand(b, -1)
        valid = self.seq.order(self.layout) >= 0
        if self.layout.index is None and self.seq.real is not None:
            valid = valid & self.seq.real
        total = torch.zeros((), device=keys.device)
        for at in range(0, p, ROWS_AT_ONCE):
            part = slice(at, at + ROWS_AT_ONCE)
            share = valid[:, part].sum(dim=1).float()[:, None, None]
            block = self._mean(queries[:, :, part], keys, rows[:, part], valid[:, part])
            total = total + block * share
        return total / valid.sum(dim=1).clamp(min=1).float()[:, None, None]

    def queries(self, rows: Tensor) -> Tensor:
        """(b, h, r, e) queries of the tokens at `rows` (b, r)."""
        b, d = self.hidden.shape[0], self.hidden.shape[-1]
        hidden = self.hidden.gather(1, rows[..., None].expand(-1, -1, d))
        rotary = tuple(
            table.expand(b, -1, -1).gather(1, rows[..., None].expand(-1, -1, table.shape[-1]))
            for table in self.rotary
        )
        return self.adapter.queries(self.layer, hidden, (rotary[0], rotary[1]))

    def asking_queries(self) -> Tensor:
        """(b, h, r, e) queries of the asking tokens."""
        return self.queries(self._asking()[0])

    def _asking(self) -> tuple[Tensor, Tensor]:
        """(b, r) physical index of the asking tokens, and which entries count."""
        seq = self.seq
        assert seq.asking is not None  # both are set with `seq.visual`
        assert seq.asking_valid is not None
        if self.layout.index is None:
            return seq.asking, seq.asking_valid
        order = seq.order(self.layout).contiguous()
        # an asking token may itself be a dropped image token: then the last one left before it
        rows = torch.searchsorted(order, seq.asking + seq.start, right=True) - 1
        return rows.clamp(min=0), seq.asking_valid

    def _keys(self, projected: Tensor | None) -> Tensor:
        keys = self.adapter.keys(self.layer, self.hidden, self.rotary, projected)
        return keys if self.past is None else torch.cat([self.past[0], keys], dim=2)

    def _mean(self, queries: Tensor, keys: Tensor, rows: Tensor, valid: Tensor) -> Tensor:
        """(b, h, v) softmax of the given rows, averaged over the valid ones."""
        seq, (b, h, r, e) = self.seq, queries.shape
        own = seq.order(self.layout)
        order = own if self.past is None else torch.cat([self.past[1], own], dim=1)
        total = seq.start + seq.length
        seen = visible(self.mask, own.gather(1, rows), order, start=seq.start, total=total)
        groups = keys.shape[1]
        q = queries.float().reshape(b, groups, h // groups * r, e)
        scores = q @ keys.float().transpose(-1, -2) * self.adapter.scaling(self.layer)
        scores = scores.view(b, h, r, -1).masked_fill(~seen, float("-inf"))
        share = scores.softmax(dim=-1).nan_to_num(nan=0.0)
        offset = 0 if self.past is None else self.past[1].shape[1]
        column = self.layout.visual + offset
        share = share.gather(3, column[:, None, None, :].expand(-1, h, r, -1))
        weight = valid.to(share.dtype) / valid.sum(dim=1, keepdim=True).clamp(min=1)
        return (share * weight[:, None, :, None]).sum(dim=2)


class Capture:
    """What a layer projects, taken as it runs: keys, and queries when every token asks."""

    def __init__(self, view: LayerView, wanted: frozenset[str]) -> None:
        self.view = view
        self.queries = view.asking_queries() if "attention_before" in wanted else None
        self.handles: list[Any] = []
        self.projected: dict[str, Tensor] = {}
        adapter, layer = view.adapter, view.layer
        self._watch("keys", adapter.key_projection(layer))
        if "attention_received" in wanted:
            self._watch("queries", adapter.query_projection(layer))

    def _watch(self, name: str, projection: nn.Module) -> None:
        owner = threading.get_ident()

        def take(_: nn.Module, __: Any, output: Tensor) -> None:
            if threading.get_ident() != owner:
                return  # the layer runs on another prompt in another thread
            self.projected[name] = output.detach()
            handle.remove()

        handle = projection.register_forward_hook(take)
        self.handles.append(handle)

    def asked(self) -> Tensor:
        """(b, h, v) attention of the asking tokens in the captured layer."""
        return self.view.asked(self.projected["keys"], self.queries)

    def received(self) -> Tensor:
        """(b, h, v) attention of all tokens in the captured layer."""
        return self.view.received(self.projected["keys"], self.projected["queries"])

    def close(self) -> None:
        """Stops watching, also when the layer never ran."""
        for handle in self.handles:
            handle.remove()


def evidence(
    view: LayerView, capture: Capture | None, needs: frozenset[str]
) -> dict[str, Callable[[], Tensor]]:
    """What a strategy may ask for at a stop; each computed at most once, when asked.

    At layer 0 there is no layer before: its own attention stands in for it.
    """

    def once(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        found: list[Tensor] = []

        def get() -> Tensor:
            if not found:
                with torch.no_grad():
                    found.append(compute())
            return found[0]

        return get

    own = once(view.asked)
    found = {"attention": own}
    if "attention_before" in needs:
        found["attention_before"] = own if capture is None else once(capture.asked)
    if "attention_received" in needs:
        found["attention_received"] = once((capture or view).received)
    return found
