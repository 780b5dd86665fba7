"""What a strategy may ask for at a stop, measured when it asks.

What the layer before a stop has just computed is captured as it runs; what a score has computed of
the layer of the stop is handed to that layer.
Shapes: b samples, r rows, v visual tokens, t text tokens, d width, h heads, e head width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.attention import LayerView, in_this_thread, same_draws
from tokenreduce.engine.hooks import Hook
from tokenreduce.engine.sequence import Sequence, rows_of
from tokenreduce.evidence import EVIDENCE, kind_of, of_tower
from tokenreduce.geometry import measured
from tokenreduce.tokens import keep_from_mask
from tokenreduce.tower import Part

Measures = Mapping[str, Callable[[], Tensor]]

FROM_BEFORE = frozenset(n for n, kind in EVIDENCE.items() if kind.source == "before")
"""Evidence that is captured while the layer before a stop runs; keys always, queries for some."""


class Capture:
    """What a layer projects, taken as it runs: keys, and queries when every token asks.

    Where it is not `watching` (a compiled layer is one graph), they are projected here, before the
    layer runs: afterwards its weights may be gone (FSDP shards a layer again after its forward).

    Args:
        view: of the layer; what is taken is put into its `captured`.
        wanted: the evidence that the next stop asks for.
        watching: whether the layer's projections are called as modules.
    """

    def __init__(self, view: LayerView, wanted: frozenset[str], watching: bool = True) -> None:
        self.view = view
        if "attention_before" in wanted:
            view.captured.query = view.queries(view.rows.queries()[0])
        if "text_attention_before" in wanted:
            view.captured.text = view.queries(view.rows.text()[0])
        self.handles: list[Any] = []
        self._watch("keys", view.adapter.key_projection(view.layer))
        if any(EVIDENCE[name].queries for name in wanted):
            self._watch("queries", view.adapter.query_projection(view.layer))
        if not watching:
            for project in (view.adapter.keys, view.adapter.queries)[: len(self.handles)]:
                project(view.layer, view.hidden, view.rotary)

    def _watch(self, name: str, projection: nn.Module) -> None:
        def take(output: Tensor) -> None:
            setattr(self.view.captured, name, output)
            handle.remove()

        handle = projection.register_forward_hook(in_this_thread(take))
        self.handles.append(handle)

    def close(self) -> None:
        """Stops watching, also when the layer never ran."""
        for handle in self.handles:
            handle.remove()


class KeyReuse:
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
        """Whether nothing could miss the call: a plain matrix that nothing else watches."""
        watched = projection._forward_pre_hooks or projection._forward_hooks
        return type(projection) is nn.Linear and not watched


def measures(
    view: LayerView, before: LayerView | None, needs: frozenset[str], decoder: Part
) -> Measures:
    """What a strategy may ask for at a stop, by name; each computed at most once, when asked.

    Args:
        view: the layer of the stop.
        before: the layer before, as it ran; at layer 0, which has none, the layer's own attention
            stands in for it.
        needs: the evidence that the strategy names; the attention of the query tokens is always
            at hand.
        decoder: whose last norm some evidence goes through.
    """
    own = _once(view.query_attention, view.layer)
    makers = _at(view, own, decoder)
    makers |= _earlier(before or view, own if before is None else None)
    makers |= {name: partial(_of_tower, view, name) for name in of_tower(needs)}
    return {
        name: _once(make, view.layer)
        for name, make in makers.items()
        if name in needs | {"attention"}
    }


def _at(
    view: LayerView, own: Callable[[], Tensor], decoder: Part
) -> dict[str, Callable[[], Tensor]]:
    """Evidence at the layer of the stop, and on what came into the decoder."""
    seq, at, text = view.rows.seq, view.rows.layout.visual, view.rows.text

    def words(x: Tensor) -> Tensor:
        index, valid = text()
        return rows_of(x, index).masked_fill(~valid[..., None], 0.0)

    return {
        "attention": own,
        "text_attention": view.text_attention,
        "keys": lambda: view.keys(at),
        "queries": lambda: view.rebased_queries(at),
        "plain_keys": lambda: view.keys(at, rotated=False),
        "plain_queries": lambda: view.rebased_queries(at, rotated=False),
        "text": lambda: words(view.hidden),
        "text_valid": lambda: text()[1],
        "text_behind": view.rows.after_picture,
        "normed": lambda: rows_of(decoder.norm(view.hidden), at),
        "text_normed": lambda: words(decoder.norm(view.hidden)),
        "embedding": lambda: _embedding(seq, "visual"),
        "embedding_valid": lambda: _embedding_rows(seq, "visual")[1],
        "text_embedding": lambda: _embedding(seq, "text"),
    }


def _earlier(
    before: LayerView, own: Callable[[], Tensor] | None
) -> dict[str, Callable[[], Tensor]]:
    """Evidence one layer before the stop; `own` where that is the layer of the stop itself."""
    largest = _once(lambda: torch.stack(before.max_head_attention()), before.layer)
    return {
        "attention_before": before.query_attention if own is None else own,
        "attention_received": before.mean_attention,
        "text_attention_before": before.text_attention,
        "received_from_text": lambda: largest()[0],
        "received_from_visual": lambda: largest()[1],
        "keys_before": lambda: before.keys(before.rows.layout.visual),
        "text_keys_before": lambda: before.keys(before.rows.text()[0]),
        "text_rotation_before": before.text_rotation,
    }


def _embedding(seq: Sequence, kind: str) -> Tensor:
    """(b, n, d) the input of layer 0 at `"visual"` or `"text"` tokens, zeros at filler.

    Text is that of the question.
    """
    assert seq.embedded is not None  # kept where a strategy reads it
    index, valid = _embedding_rows(seq, kind)
    return rows_of(seq.embedded, index).masked_fill(~valid[..., None], 0.0)


def _embedding_rows(seq: Sequence, kind: str) -> tuple[Tensor, Tensor]:
    """(b, n) the index of these tokens at layer 0, and which entries count."""

    def make() -> tuple[Tensor, Tensor]:
        mask, counts = seq.visual.visual, seq.counts
        if kind == "text":
            mask, counts = ~mask, seq.texts
            for also in (seq.visual.real, seq.visual.before_answer):
                mask = mask if also is None else mask & also
        return keep_from_mask(mask, max(max(counts), 1))

    return seq.made.once(("embedding", kind), make)


def _of_tower(view: LayerView, name: str) -> Tensor:
    """What the vision tower said about the tokens that are left; heads come first, if any."""
    seq = view.rows.seq
    whole = seq.made.once(name, lambda: measured(seq.visual.pictures, name))
    left = rows_of_any(whole.to(view.hidden.device), view.rows.layout.origin)
    return left.transpose(1, 2) if EVIDENCE[kind_of(name)].dims[0] == "h" else left


def rows_of_any(x: Tensor, index: Tensor) -> Tensor:
    """(b, v, …) and (b, k) -> (b, k, …), also for numbers without a width."""
    return x.gather(1, index) if x.dim() == 2 else rows_of(x, index)


def _once(compute: Callable[[], Tensor], layer: nn.Module) -> Callable[[], Tensor]:
    found: list[Tensor] = []

    def get() -> Tensor:
        if not found:
            with torch.no_grad(), same_draws(layer):
                found.append(compute())
        return found[0]

    return get
