"""Evidence from the vision tower, taken while it encodes: what it says about every visual token.

The tower's projections are captured as its layers run; attention is computed for the rows that a
strategy asks for. Shapes: n pictures of the tower's batch (tiles, frames), p tower tokens (class
tokens first), h heads, e head width, d width, m patches that make one visual token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import Tower
from tokenreduce.engine.view import in_this_thread
from tokenreduce.geometry import Picture
from tokenreduce.tokens import TOWER

ROWS_AT_ONCE = 256
"""Query rows per block where every patch asks."""
LAYERS = {
    "class_attention": "feature",
    "class_attention_first": "first",
    "tower_keys": "feature",
    "class_match": "last",
    "match_keys": "last",
}
"""Which of the tower's layers a kind of evidence reads."""


class Watch:
    """Captures what some of the tower's layers project, for one encoder call.

    Args:
        tower: the facts of the tower.
        needs: the evidence that is wanted.
    """

    def __init__(self, tower: Tower, needs: frozenset[str]) -> None:
        self.tower, self.needs = tower, needs & set(TOWER)
        self.taken: dict[tuple[str, str], Tensor] = {}
        self.handles: list[Any] = []
        for which in {LAYERS[name] for name in self.needs if name in LAYERS}:
            layer = tower.layers[self._number(which)]
            for name, projection in zip(("query", "key"), tower.projections(layer), strict=True):
                self._watch((which, name), projection)
        if "tower_features" in self.needs:
            self._watch(("feature", "output"), tower.layers[tower.feature])

    def _number(self, which: str) -> int:
        return {"first": 0, "feature": self.tower.feature, "last": len(self.tower.layers) - 1}[
            which
        ]

    def _watch(self, key: tuple[str, str], module: nn.Module) -> None:
        def take(output: Any) -> None:
            self.taken[key] = output[0] if isinstance(output, tuple) else output

        self.handles.append(module.register_forward_hook(in_this_thread(take)))

    def close(self) -> None:
        """Stops watching."""
        for handle in self.handles:
            handle.remove()

    def patches(self, name: str) -> Tensor:
        """(n p, …) one kind of evidence on every patch of the call, class tokens left out."""
        found = getattr(self, f"_{name}")()
        return found[:, self.tower.classes :].flatten(0, 1)  # type: ignore[no-any-return]

    def _class_attention(self, which: str = "feature") -> Tensor:
        """(n, p, h)."""
        queries, keys = (self._heads(which, name) for name in ("query", "key"))
        keys = keys.transpose(-1, -2) * self.tower.scaling(keys.shape[-1])
        if self.tower.classes:
            share: Tensor = (queries[:, :, :1] @ keys).softmax(dim=-1)
            return share[:, :, 0].transpose(1, 2)
        p = queries.shape[2]
        total = sum(
            (queries[:, :, at : at + ROWS_AT_ONCE] @ keys).softmax(dim=-1).sum(dim=2)
            for at in range(0, p, ROWS_AT_ONCE)
        )
        assert isinstance(total, Tensor)  # a picture has patches
        return (total / p).transpose(1, 2)

    def _class_attention_first(self) -> Tensor:
        return self._class_attention("first")

    def _tower_features(self) -> Tensor:
        """(n, p, d)."""
        return self.taken["feature", "output"]

    def _tower_keys(self) -> Tensor:
        """(n, p, e)."""
        return self._heads("feature", "key").mean(dim=1)

    def _class_match(self) -> Tensor:
        """(n, p)."""
        queries, keys = (self.taken["last", name].float() for name in ("query", "key"))
        classes = self.tower.classes
        asking = queries[:, :1] if classes else queries.mean(dim=1, keepdim=True)
        share = (asking @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5).softmax(dim=-1)
        found: Tensor = share[:, 0]
        return found

    def _match_keys(self) -> Tensor:
        """(n, p, d)."""
        return self.taken["last", "key"]

    def _heads(self, which: str, name: str) -> Tensor:
        """(n, h, p, e) in fp32."""
        x = self.taken[which, name].float()
        return x.view(*x.shape[:-1], self.tower.heads, -1).transpose(1, 2)


@contextmanager
def watched(tower: Tower | None, needs: frozenset[str]) -> Iterator[Watch | None]:
    """Captures the tower inside the block, where a strategy needs something of it."""
    if tower is None or not needs & set(TOWER):
        yield None
        return
    watch = Watch(tower, needs)
    try:
        yield watch
    finally:
        watch.close()


def measure(pictures: Sequence[Picture], watch: Watch) -> list[Picture]:
    """The pictures with what the tower said about each of their tokens.

    A token's evidence is the mean over its patches (`Picture.patches`), zero for separators.
    """
    with torch.no_grad():
        whole = {name: watch.patches(name).detach() for name in sorted(watch.needs)}
    return [
        replace(picture, measures={name: _of(picture, x) for name, x in whole.items()})
        for picture in pictures
    ]


def _of(picture: Picture, whole: Tensor) -> Tensor:
    """(tokens, …) the mean of a token's patches."""
    assert picture.patches is not None  # families with a tower say which patches a token is of
    index = picture.patches.to(whole.device)
    found = whole[index.clamp(min=0)].float()
    there = (index >= 0).view(*index.shape, *[1] * (found.dim() - 2))
    return (found * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
