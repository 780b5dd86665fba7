"""What a strategy may ask for at a stop, measured when it asks.

What the layer before a stop has just computed is captured as it runs.
Shapes: b samples, r rows, v visual tokens, t text tokens, d width, h heads, e head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.sequence import rows_of
from tokenreduce.engine.view import LayerView, in_this_thread, same_draws
from tokenreduce.geometry import measured
from tokenreduce.tokens import TOWER, kind_of
from tokenreduce.tower import Part

KEYS_BEFORE = frozenset(
    {
        "attention_before",
        "text_attention_before",
        "keys_before",
        "text_keys_before",
        "text_rotation_before",
    }
)
QUERIES_BEFORE = frozenset({"attention_received", "received_from_text", "received_from_visual"})
PER_HEAD = ("class_attention", "tower_attention")
"""Beginnings of the names of what a tower says once for each of its heads."""
FROM_BEFORE = KEYS_BEFORE | QUERIES_BEFORE
"""Evidence that is captured while the layer before a stop runs; keys always, queries for some."""


class Capture:
    """What a layer projects, taken as it runs: keys, and queries when every token asks.

    Where it is not `watching` (a compiled layer is one graph), they are projected here, before the
    layer runs: afterwards its weights may be gone (FSDP shards a layer again behind its forward).
    """

    def __init__(self, view: LayerView, wanted: frozenset[str], watching: bool = True) -> None:
        self.view = view
        self.asking = view.asking_queries() if "attention_before" in wanted else None
        self.texts = view.queries(view.text()[0]) if "text_attention_before" in wanted else None
        self.handles: list[Any] = []
        self.projected: dict[str, Tensor] = {}
        self._watch("keys", view.adapter.key_projection(view.layer))
        if wanted & QUERIES_BEFORE:
            self._watch("queries", view.adapter.query_projection(view.layer))
        if not watching:
            for project in (view.adapter.keys, view.adapter.queries)[: len(self.handles)]:
                project(view.layer, view.hidden, view.rotary)

    def _watch(self, name: str, projection: nn.Module) -> None:
        def take(output: Tensor) -> None:
            self.projected[name] = output
            handle.remove()

        handle = projection.register_forward_hook(in_this_thread(take))
        self.handles.append(handle)

    def close(self) -> None:
        """Stops watching, also when the layer never ran."""
        for handle in self.handles:
            handle.remove()


def evidence(
    view: LayerView, capture: Capture | None, needs: frozenset[str], decoder: Part
) -> dict[str, Callable[[], Tensor]]:
    """What a strategy may ask for at a stop, by name; each computed at most once, when asked.

    At layer 0 there is no layer before: the layer's own attention stands in for it.
    """
    seq, at = view.seq, view.layout.visual
    before = view if capture is None else capture.view
    given: dict[str, Tensor] = {} if capture is None else capture.projected
    keys, queries = given.get("keys"), given.get("queries")
    text, valid = seq.once(("text", id(view.layout)), view.text, view.layout)

    def words(x: Tensor) -> Tensor:
        return rows_of(x, text).masked_fill(~valid[..., None], 0.0)

    largest = _once(lambda: torch.stack(before.largest(keys, queries)), view.layer)
    own = _once(view.asked, view.layer)
    makers: dict[str, Callable[[], Tensor]] = {
        "attention": own,
        "attention_before": lambda: (
            own() if capture is None else before.asked(keys, capture.asking)
        ),
        "attention_received": lambda: before.received(keys, queries),
        "text_attention": view.from_text,
        "text_attention_before": lambda: before.from_text(
            keys, None if capture is None else capture.texts
        ),
        "received_from_text": lambda: largest()[0],
        "received_from_visual": lambda: largest()[1],
        "keys": lambda: view.keys(at),
        "keys_before": lambda: before.keys(before.layout.visual, keys),
        "queries": lambda: view.turned_queries(at),
        "plain_keys": lambda: view.keys(at, rotated=False),
        "plain_queries": lambda: view.turned_queries(at, rotated=False),
        "text_keys_before": lambda: before.keys(before.text()[0], keys),
        "text_rotation_before": before.text_rotation,
        "text": lambda: words(view.hidden),
        "text_valid": lambda: valid,
        "text_behind": view.behind,
        "normed": lambda: rows_of(decoder.norm(view.hidden), at),
        "text_normed": lambda: words(decoder.norm(view.hidden)),
        "embedding": lambda: seq.embedding("visual"),
        "embedding_valid": lambda: seq.first().visual_valid,
        "text_embedding": lambda: seq.embedding("text"),
    }
    for name in needs:
        if kind_of(name) in TOWER:
            makers[name] = lambda name=name: _of_tower(view, name)  # type: ignore[misc]
    return {
        name: _once(make, view.layer)
        for name, make in makers.items()
        if name in needs | {"attention"}
    }


def _of_tower(view: LayerView, name: str) -> Tensor:
    """What the vision tower said about the tokens that are left; heads come first, if any."""
    whole = view.seq.once(("tower", name), lambda: measured(view.seq.pictures, name))
    left = rows_of_any(whole.to(view.hidden.device), view.layout.origin)
    return left.transpose(1, 2) if name.startswith(PER_HEAD) else left


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
