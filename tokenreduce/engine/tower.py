"""Evidence from the vision tower, taken while it encodes: what it says about every visual token.

The tower's projections are captured as its layers run; attention is computed for the rows that a
strategy asks for. Shapes: n pictures of the tower's batch (tiles, frames), p tower tokens (class
tokens first), h heads, e head width, d width, m patches that make one visual token.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.contract import installed
from tokenreduce.engine.view import in_this_thread, in_turn
from tokenreduce.errors import ContractError
from tokenreduce.geometry import Picture
from tokenreduce.tokens import TOWER
from tokenreduce.tower import Tower

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
        self.taken: dict[tuple[str, Any], Any] = {}
        self.handles: list[Any] = []
        for which in {LAYERS[name] for name in self.needs if name in LAYERS}:
            layer = tower.layers[self._number(which)]
            self._listen((which, "call"), tower.attention(layer))
            for i, projection in enumerate(tower.projections(layer)):
                self._watch((which, i), projection)
        if "tower_features" in self.needs:
            last = tower.layers[tower.feature] if tower.norm is None else tower.norm
            self._watch(("feature", "output"), last)

    def _number(self, which: str) -> int:
        return {"first": 0, "feature": self.tower.feature, "last": len(self.tower.layers) - 1}[
            which
        ]

    def _listen(self, key: tuple[str, Any], module: nn.Module) -> None:
        owner = threading.get_ident()

        def note(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == owner:  # else: another prompt in another thread
                self.taken[key] = kwargs

        self.handles.append(module.register_forward_pre_hook(note, with_kwargs=True))

    def _watch(self, key: tuple[str, Any], module: nn.Module) -> None:
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
        queries, keys = map(self._heads, self._projected(which))
        call = self.taken[which, "call"]
        tables, lengths = self.tower.rotary(call), self.tower.blocks(call)
        if tables is not None:
            cos, sin = (table[None].float() for table in tables)
            queries, keys = (self.tower.turned(x, (cos, sin)) for x in (queries, keys))
        if lengths is None:
            return self._asked(queries, keys)
        parts = zip(*(torch.split(x, lengths, dim=2) for x in (queries, keys)), strict=True)
        return torch.cat([self._asked(*part) for part in parts], dim=1)

    def _asked(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(n, p, h) attention of the class token, or the mean over all patches."""
        keys = keys.transpose(-1, -2) * self.tower.scaling(keys.shape[-1])
        if self.tower.classes:
            share: Tensor = (queries[:, :, :1] @ keys).softmax(dim=-1)
            return share[:, :, 0].transpose(1, 2)
        p = queries.shape[2]
        total = sum(
            (queries[:, :, part] @ keys).softmax(dim=-1).sum(dim=2) for part in in_turn(p, p)
        )
        assert isinstance(total, Tensor)  # a picture has patches
        return (total / p).transpose(1, 2)

    def _class_attention_first(self) -> Tensor:
        return self._class_attention("first")

    def _tower_features(self) -> Tensor:
        """(n, p, d)."""
        found: Tensor = self.taken["feature", "output"]
        return found.view(-1, *found.shape[-2:])

    def _tower_keys(self) -> Tensor:
        """(n, p, e)."""
        return self._heads(self._projected("feature")[1]).mean(dim=1)

    def _class_match(self) -> Tensor:
        """(n, p)."""
        queries, keys = (x.float() for x in self._projected("last"))
        lengths = self.tower.blocks(self.taken["last", "call"])
        if lengths is None:
            return self._matched(queries, keys)
        parts = zip(*(torch.split(x, lengths, dim=1) for x in (queries, keys)), strict=True)
        return torch.cat([self._matched(*part) for part in parts], dim=1)

    def _matched(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(n, p) softmax of one query with all keys, over their full width."""
        asking = queries[:, :1] if self.tower.classes else queries.mean(dim=1, keepdim=True)
        share = (asking @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5).softmax(dim=-1)
        found: Tensor = share[:, 0]
        return found

    def _match_keys(self) -> Tensor:
        """(n, p, d)."""
        return self._projected("last")[1]

    def _projected(self, which: str) -> tuple[Tensor, Tensor]:
        """(n, p, d) queries and keys of a layer, before rotation."""
        number = len(self.tower.projections(self.tower.layers[0]))
        return self.tower.split(*(self.taken[which, i] for i in range(number)))

    def _heads(self, x: Tensor) -> Tensor:
        """(n, h, p, e) in fp32, of (n, p, d)."""
        x = x.float()
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


def check_patches(model: nn.Module, pictures: Iterable[Picture]) -> None:
    """Refuses evidence of the vision tower about tokens of which nobody knows the patches.

    Raises:
        ContractError: an encoder whose output has not the layout that the adapter knows.
    """
    for picture in pictures:
        if picture.patches is None:
            raise ContractError(
                f"transformers {installed()}, {type(model).__name__}: which patches of the vision "
                f"tower its {len(picture)} visual tokens are made of is not known (its encoder "
                "returned another number of them than the adapter expects), so that nothing of "
                "the tower can be said about them: choose a strategy that asks the decoder alone "
                "(fastv, pyramid_drop, divprune, random), or remove the reduction"
            )


def measure(pictures: Sequence[Picture], watch: Watch) -> list[Picture]:
    """The pictures with what the tower said about each of their tokens.

    A token's evidence is the mean over its patches (`Picture.patches`), zero for separators.
    """
    with torch.no_grad():
        whole = {name: watch.patches(name).detach() for name in sorted(watch.needs)}
    return [
        replace(
            picture,
            measures={**picture.measures, **{name: _of(picture, x) for name, x in whole.items()}},
        )
        for picture in pictures
    ]


def _of(picture: Picture, whole: Tensor) -> Tensor:
    """(tokens, …) the mean of a token's patches."""
    assert picture.patches is not None  # `check_patches` saw to it
    index = picture.patches.to(whole.device)
    found = whole[index.clamp(min=0)].float()
    there = (index >= 0).view(*index.shape, *[1] * (found.dim() - 2))
    return (found * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
