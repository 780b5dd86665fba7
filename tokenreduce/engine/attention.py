"""One decoder layer as far as attention is concerned: queries, keys, and rows of attention.

No l x l map, no second run of a layer: only the projections that a score needs are computed, for
the rows that it needs. Softmax over the whole visible row, in fp32.
Shapes: b samples, r rows, p physical tokens, v visual tokens, t text tokens, h heads, e head width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce import selection
from tokenreduce.adapter import Adapter
from tokenreduce.engine.masks import Extent, visible
from tokenreduce.engine.sequence import rows_of
from tokenreduce.engine.token_rows import TokenRows
from tokenreduce.tower import Part, Rotary

ROWS_AT_ONCE = 256
"""Query rows per block when every token asks; fewer where they see more than `DENSE` keys."""
KEYS_AT_ONCE = 512
"""Tokens per block when keys are made on a CPU: what is made of a block is read from its cache."""


@dataclass
class Captured:
    """What was projected before a view is read, while its weights were there.

    Attributes:
        keys, queries: (b, p, …) what the layer's projections returned for all tokens as it ran.
        query: (b, h, r, e) queries of the query tokens.
        text: (b, h, t, e) queries of the text tokens.
    """

    keys: Tensor | None = None
    queries: Tensor | None = None
    query: Tensor | None = None
    text: Tensor | None = None


@dataclass
class LayerView:
    """One decoder layer in one forward pass, as far as attention is concerned.

    Attributes:
        adapter: how the layer is read.
        layer: the module.
        rows: which of its tokens are visual, text, queries.
        hidden: (b, p, d) the layer's input.
        rotary: cos and sin of these tokens.
        mask: the model's own (logical) mask for this layer.
        past: keys and their logical order (b, p_past) cached before this pass, if any.
        captured: what was projected already.
        handing: whether the layer may be given the projections that a score made of its keys.
        projected: these projections (b, p, h_kv e), once a score has made them.
    """

    adapter: Adapter
    layer: Part
    rows: TokenRows
    hidden: Tensor
    rotary: Rotary
    mask: Any
    past: tuple[Tensor, Tensor] | None
    captured: Captured = field(default_factory=Captured)
    handing: bool = False
    projected: Tensor | None = None

    # -- queries and keys ----------------------------------------------------------------------

    def queries(self, rows: Tensor) -> Tensor:
        """(b, h, r, e) queries of the tokens at `rows` (b, r)."""
        b = self.hidden.shape[0]
        rotary = tuple(rows_of(table.expand(b, -1, -1), rows) for table in self.rotary)
        return self.adapter.queries(self.layer, rows_of(self.hidden, rows), (rotary[0], rotary[1]))

    def keys(self, rows: Tensor, rotated: bool = True) -> Tensor:
        """(b, h, r, e) keys of the tokens at `rows` (b, r), one for each query head."""
        rotary = self.rebased_rotary(rotated)
        x = self.adapter.keys(self.layer, self.hidden, rotary, self.captured.keys)
        index = rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
        return x.gather(2, index).repeat_interleave(self.adapter.key_groups(self.layer), dim=1)

    def rebased_rotary(self, rotated: bool = True) -> Rotary:
        """(b, p, e) cos and sin, counted from the sample's first token; or those of no rotation.

        What a score reads of single keys must not depend on the padding before a sample, which
        moves the positions that a model counts by itself; products of queries and keys do not.
        """
        cos, sin = (table.expand(len(self.hidden), -1, -1).float() for table in self.rotary)
        if not rotated:
            return torch.ones_like(cos), torch.zeros_like(sin)
        first = self.rows.real().long().argmax(dim=1, keepdim=True)
        cos0, sin0 = rows_of(cos, first), rows_of(sin, first)
        size = (cos0**2 + sin0**2).sqrt()
        return (cos * cos0 + sin * sin0) / size, (sin * cos0 - cos * sin0) / size

    def rebased_queries(self, rows: Tensor, rotated: bool = True) -> Tensor:
        """(b, h, r, e) queries of the tokens at `rows` (b, r), rotated as `keys` are."""
        cos, sin = (rows_of(table, rows) for table in self.rebased_rotary(rotated))
        return self.adapter.queries(self.layer, rows_of(self.hidden, rows), (cos, sin))

    def text_rotation(self) -> Tensor:
        """(b, t, v) products of a query and a key of ones, rotated as text and visual tokens are.

        Scaled as attention is: for head width e the sum of the cosines over the square root of e.
        """
        tables = [table.expand(len(self.hidden), -1, -1).float() for table in self.rotary]
        text, visual = self.rows.text()[0], self.rows.layout.visual
        return sum(  # type: ignore[return-value]
            rows_of(table, text) @ rows_of(table, visual).transpose(1, 2) for table in tables
        ) * float(tables[0].shape[-1] ** -0.5)

    # -- rows of attention ---------------------------------------------------------------------

    def query_attention(self) -> Tensor:
        """(b, h, v) attention of the query tokens, averaged over them."""
        rows, valid = self.rows.queries()
        queries = self.queries(rows) if self.captured.query is None else self.captured.query
        return self._visual(self._mean(self._products(queries), rows, valid))

    def mean_attention(self) -> Tensor:
        """(b, h, v) attention from all tokens of the question, averaged over them."""
        queries, keys = self._all_queries(), self._all_keys()
        (b, p), width = self.hidden.shape[:2], keys.shape[2]
        rows = torch.arange(p, device=keys.device).expand(b, -1)
        valid = self.rows.question()
        total = torch.zeros(b, queries.shape[1], width, device=keys.device)
        for part in in_turn(p, keys.shape[2]):
            # without a mask attention is causal: later keys get nothing from this block
            upto = width if isinstance(self.mask, Tensor) else width - max(p - part.stop, 0)
            share = valid[:, part].sum(dim=1).float()[:, None, None]
            products = self._dot(queries[:, :, part], keys[:, :, :upto])
            total[:, :, :upto] += self._mean(products, rows[:, part], valid[:, part]) * share
        return self._visual(total) / valid.sum(dim=1).clamp(min=1).float()[:, None, None]

    def text_attention(self) -> Tensor:
        """(b, h, t, v) attention of every text token."""
        rows = self.rows.text()[0]
        queries = self.queries(rows) if self.captured.text is None else self.captured.text
        products = self._products(queries)
        found = [
            self._visual(self._share(products[:, :, part], rows[:, part]))
            for part in in_turn(rows.shape[1], products.shape[-1])
        ]
        return torch.cat(found, dim=2)

    def max_head_attention(self) -> tuple[Tensor, Tensor]:
        """(b, v) twice: the largest head's attention, sum of the text rows, mean of the visual."""
        queries, keys = self._all_queries(), self._all_keys()
        b, p = self.hidden.shape[:2]
        rows = torch.arange(p, device=keys.device).expand(b, -1)
        kinds = self.rows.shown(text=True), self.rows.shown(text=False) & self.rows.question()
        sums = [torch.zeros(b, keys.shape[2], device=keys.device) for _ in kinds]
        for part in in_turn(p, keys.shape[2]):
            most = self._share(self._dot(queries[:, :, part], keys), rows[:, part]).amax(dim=1)
            for total, kind in zip(sums, kinds, strict=True):
                total += (most * kind[:, part, None]).sum(dim=1)
        text, visual = (self._visual(total[:, None])[:, 0] for total in sums)
        return text, visual / kinds[1].sum(dim=1, keepdim=True).clamp(min=1)

    def _all_keys(self) -> Tensor:
        """(b, h_kv, p_past + p, e) every key that the layer sees."""
        keys = self.adapter.keys(self.layer, self.hidden, self.rotary, self.captured.keys)
        return keys if self.past is None else torch.cat([self.past[0], keys], dim=2)

    def _all_queries(self) -> Tensor:
        """(b, h, p, e) the query of every token."""
        made = self.captured.queries
        return self.adapter.queries(self.layer, self.hidden, self.rotary, made)

    def _products(self, queries: Tensor) -> Tensor:
        """(b, h, r, p_past + p) scaled products of `queries` with every key, block by block."""
        p, captured = self.hidden.shape[1], self.captured.keys
        width = KEYS_AT_ONCE if self.hidden.device.type == "cpu" else p
        made = [] if self.past is None else [self._dot(queries, self.past[0])]
        with self._kept_projections() if captured is None and self.handing else nullcontext():
            for at in range(0, p, width):
                part = slice(at, at + width)
                rotary = (self.rotary[0][..., part, :], self.rotary[1][..., part, :])
                given = None if captured is None else captured[:, part]
                keys = self.adapter.keys(self.layer, self.hidden[:, part], rotary, given)
                made.append(self._dot(queries, keys))
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    @contextmanager
    def _kept_projections(self) -> Iterator[None]:
        """Keeps what the key projection returns inside the block."""
        taken: list[Tensor] = []
        projection = self.adapter.key_projection(self.layer)
        handle = projection.register_forward_hook(in_this_thread(taken.append))
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
        share = self._share(products, rows)
        weight = valid.to(share.dtype) / valid.sum(dim=1, keepdim=True).clamp(min=1)
        return (share * weight[:, None, :, None]).sum(dim=2)

    def _share(self, products: Tensor, rows: Tensor) -> Tensor:
        """(b, h, r, p) softmax of the given rows over the first p keys."""
        own, seq = self.rows.order, self.rows.seq
        order = own if self.past is None else torch.cat([self.past[1], own], dim=1)
        order = order[:, : products.shape[-1]]
        at = Extent(own.gather(1, rows), order, seq.start, seq.start + seq.length)
        seen = visible(self.mask, at)
        return products.masked_fill(~seen, float("-inf")).softmax(dim=-1).nan_to_num(nan=0.0)

    def _visual(self, share: Tensor) -> Tensor:
        """(b, h, ..., p_past + p) -> (b, h, ..., v)."""
        offset = 0 if self.past is None else self.past[1].shape[1]
        column = self.rows.layout.visual + offset
        column = column.view(len(column), *[1] * (share.dim() - 2), -1)
        return share.gather(-1, column.expand(*share.shape[:-1], -1))


def in_turn(rows: int, keys: int) -> list[slice]:
    """Query rows in blocks, of no more than `ROWS_AT_ONCE` times `DENSE` numbers for a head."""
    step = max(min(ROWS_AT_ONCE, ROWS_AT_ONCE * selection.DENSE // max(keys, 1)), 1)
    return [slice(at, min(at + step, rows)) for at in range(0, rows, step)]


@contextmanager
def same_draws(layer: nn.Module) -> Iterator[None]:
    """Measures a layer in training without moving its dropout's random numbers on."""
    if not layer.training:
        yield
        return
    devices = {p.device.index for p in layer.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng([index for index in devices if index is not None]):
        yield


def in_this_thread(take: Callable[[Tensor], None]) -> Callable[..., None]:
    """A forward hook that tells `take` the output, of calls that this thread makes."""
    owner = threading.get_ident()

    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        if threading.get_ident() == owner:  # else: another prompt in another thread
            take(output.detach())

    return hook
