"""Attention of a few query rows on the visual tokens: no l x l map, no second run of a layer.

Only the projections that a score needs are computed; what the layer before has just computed is
captured as it runs. Softmax over the whole visible row, in fp32.
Shapes: b samples, r rows, p physical tokens, v visual tokens, h heads, e head width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import Adapter, Rotary
from tokenreduce.engine.hooks import Hook
from tokenreduce.engine.masks import visible
from tokenreduce.engine.sequence import Layout, Sequence, rows_of

ROWS_AT_ONCE = 256
"""Query rows per block when every token asks: bounds memory at (h, 256, p) floats per sample."""
KEYS_AT_ONCE = 512
"""Tokens per block when keys are made on a CPU: what is made of a block is read from its cache."""


@dataclass
class LayerView:
    """One decoder layer in one forward pass, as far as attention is concerned.

    Attributes:
        hidden: (b, p, d) the layer's input; `layout` says which tokens these are.
        rotary: cos and sin of these tokens.
        mask: the model's own (logical) mask for this layer.
        past: keys and their logical order (b, p_past) cached before this pass, if any.
        handing: whether the layer may be given the projections that a score made of its keys.
        projected: these projections (b, p, h_kv e), once a score has made them.
    """

    adapter: Adapter
    seq: Sequence
    layer: nn.Module
    layout: Layout
    hidden: Tensor
    rotary: Rotary
    mask: Any
    past: tuple[Tensor, Tensor] | None
    handing: bool = False
    projected: Tensor | None = None

    def asked(self, projected_keys: Tensor | None = None, queries: Tensor | None = None) -> Tensor:
        """(b, h, v) attention of the asking tokens, averaged over them."""
        rows, valid = self._asking()
        if queries is None:
            queries = self.queries(rows)
        products = self._products(queries, projected_keys)
        return self._visual(self._mean(products, rows, valid))

    def received(
        self, projected_keys: Tensor | None = None, projected_queries: Tensor | None = None
    ) -> Tensor:
        """(b, h, v) attention from all tokens of the sequence, averaged over them."""
        queries = self.adapter.queries(self.layer, self.hidden, self.rotary, projected_queries)
        keys = self.adapter.keys(self.layer, self.hidden, self.rotary, projected_keys)
        keys = keys if self.past is None else torch.cat([self.past[0], keys], dim=2)
        (b, p), width = self.hidden.shape[:2], keys.shape[2]
        rows = torch.arange(p, device=keys.device).expand(b, -1)
        valid = self.seq.order(self.layout) >= 0
        if self.layout.index is None and self.seq.real is not None:
            valid = valid & self.seq.real
        total = torch.zeros(b, queries.shape[1], width, device=keys.device)
        for at in range(0, p, ROWS_AT_ONCE):
            part = slice(at, at + ROWS_AT_ONCE)
            # without a mask attention is causal: later keys get nothing from this block
            upto = width if isinstance(self.mask, Tensor) else width - max(p - part.stop, 0)
            share = valid[:, part].sum(dim=1).float()[:, None, None]
            products = self._dot(queries[:, :, part], keys[:, :, :upto])
            total[:, :, :upto] += self._mean(products, rows[:, part], valid[:, part]) * share
        return self._visual(total) / valid.sum(dim=1).clamp(min=1).float()[:, None, None]

    def queries(self, rows: Tensor) -> Tensor:
        """(b, h, r, e) queries of the tokens at `rows` (b, r)."""
        b = self.hidden.shape[0]
        rotary = tuple(rows_of(table.expand(b, -1, -1), rows) for table in self.rotary)
        return self.adapter.queries(self.layer, rows_of(self.hidden, rows), (rotary[0], rotary[1]))

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

    def _products(self, queries: Tensor, projected: Tensor | None) -> Tensor:
        """(b, h, r, p_past + p) scaled products of `queries` with every key, block by block."""
        p = self.hidden.shape[1]
        width = KEYS_AT_ONCE if self.hidden.device.type == "cpu" else p
        made = [] if self.past is None else [self._dot(queries, self.past[0])]
        with self._kept_projections() if projected is None and self.handing else nullcontext():
            for at in range(0, p, width):
                part = slice(at, at + width)
                rotary = (self.rotary[0][..., part, :], self.rotary[1][..., part, :])
                given = None if projected is None else projected[:, part]
                keys = self.adapter.keys(self.layer, self.hidden[:, part], rotary, given)
                made.append(self._dot(queries, keys))
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    @contextmanager
    def _kept_projections(self) -> Iterator[None]:
        """Keeps what the key projection returns inside the block."""
        taken: list[Tensor] = []
        projection = self.adapter.key_projection(self.layer)
        handle = projection.register_forward_hook(_in_this_thread(taken.append))
        try:
            yield
        finally:
            handle.remove()
        if sum(part.shape[1] for part in taken) == self.hidden.shape[1]:
            self.projected = torch.cat(taken, dim=1)

    def _dot(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(b, h, r, p) scaled products in fp32."""
        b, h, r, e = queries.shape
        groups = keys.shape[1]
        q = queries.float().reshape(b, groups, h // groups * r, e)
        products = self.adapter.scores(self.layer, q @ keys.float().transpose(-1, -2))
        return products.view(b, h, r, -1)

    def _mean(self, products: Tensor, rows: Tensor, valid: Tensor) -> Tensor:
        """(b, h, p) softmax of the given rows over the first p keys, averaged over valid rows."""
        seq = self.seq
        own = seq.order(self.layout)
        order = own if self.past is None else torch.cat([self.past[1], own], dim=1)
        order, total = order[:, : products.shape[-1]], seq.start + seq.length
        seen = visible(self.mask, own.gather(1, rows), order, start=seq.start, total=total)
        share = products.masked_fill(~seen, float("-inf")).softmax(dim=-1).nan_to_num(nan=0.0)
        weight = valid.to(share.dtype) / valid.sum(dim=1, keepdim=True).clamp(min=1)
        return (share * weight[:, None, :, None]).sum(dim=2)

    def _visual(self, share: Tensor) -> Tensor:
        """(b, h, p_past + p) -> (b, h, v)."""
        offset = 0 if self.past is None else self.past[1].shape[1]
        column = (self.layout.visual + offset)[:, None, :]
        return share.gather(2, column.expand(-1, share.shape[1], -1))


def _in_this_thread(take: Callable[[Tensor], None]) -> Callable[..., None]:
    """A forward hook that tells `take` the output, of calls that this thread makes."""
    owner = threading.get_ident()

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        if threading.get_ident() == owner:  # else: another prompt in another thread
            take(output.detach())

    return hook


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
        def take(output: Tensor) -> None:
            self.projected[name] = output
            handle.remove()

        handle = projection.register_forward_hook(_in_this_thread(take))
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


class Handover:
    """Gives a layer the key projections that a score has made, in place of its own.

    The layer would project the tokens that stay a second time. Its projection is called with no
    rows, and what it returns is replaced; both hooks leave with that call, or with the pass.
    """

    def __init__(self, projection: nn.Module, keys: Tensor) -> None:
        owner = threading.get_ident()

        def skip(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
            return (args[0][:, :0],) if threading.get_ident() == owner else None

        def give(_: nn.Module, __: Any, ___: Tensor) -> Tensor | None:
            if threading.get_ident() != owner:
                return None
            self.close()
            return keys

        before, after = Hook(skip), Hook(give)
        self.handles: list[Any] = [
            projection.register_forward_pre_hook(before),
            projection.register_forward_hook(after),
        ]

    def close(self) -> None:
        """Leaves the projection to itself."""
        for handle in self.handles:
            handle.remove()

    @staticmethod
    def fits(projection: nn.Module) -> bool:
        """Whether nobody could miss the call: a plain matrix that nobody else watches."""
        watched = projection._forward_pre_hooks or projection._forward_hooks
        return type(projection) is nn.Linear and not watched


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
