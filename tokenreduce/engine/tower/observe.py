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

from tokenreduce.engine.attention import in_this_thread, in_turn
from tokenreduce.engine.contract import installed
from tokenreduce.errors import ContractError
from tokenreduce.evidence import TOWER, kind_of, layer_of, of_tower
from tokenreduce.geometry import Picture
from tokenreduce.tower import Tower


class TowerCapture:
    """Captures what some of the tower's layers project, for one encoder call.

    Args:
        tower: the facts of the tower.
        needs: the evidence that is wanted.
    """

    def __init__(self, tower: Tower, needs: frozenset[str]) -> None:
        self.tower, self.needs = tower, of_tower(needs)
        self.taken: dict[tuple[int, Any], Any] = {}
        self.handles: list[Any] = []
        for number in {self._number(name) for name in self.needs if TOWER[kind_of(name)].layer}:
            layer = tower.layers[number]
            self._capture_call((number, "call"), tower.attention(layer))
            for i, projection in enumerate(tower.projections(layer)):
                self._capture_output((number, i), projection)
        if "tower_features" in self.needs:
            last = tower.layers[tower.feature] if tower.norm is None else tower.norm
            self._capture_output((self._feature, "output"), last)

    @property
    def _feature(self) -> int:
        return range(len(self.tower.layers))[self.tower.feature]

    def _number(self, name: str) -> int:
        """The layer that a kind of evidence reads."""
        depth = len(self.tower.layers)
        named = layer_of(name, depth)
        usual = {"first": 0, "feature": self._feature, "last": depth - 1}
        return usual[str(TOWER[kind_of(name)].layer)] if named is None else named

    def _capture_call(self, key: tuple[int, Any], module: nn.Module) -> None:
        owner = threading.get_ident()

        def note(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == owner:  # else: another prompt in another thread
                self.taken[key] = kwargs

        self.handles.append(module.register_forward_pre_hook(note, with_kwargs=True))

    def _capture_output(self, key: tuple[int, Any], module: nn.Module) -> None:
        def take(output: Any) -> None:
            self.taken[key] = output[0] if isinstance(output, tuple) else output

        self.handles.append(module.register_forward_hook(in_this_thread(take)))

    def close(self) -> None:
        """Removes its hooks."""
        for handle in self.handles:
            handle.remove()

    def patches(self, name: str) -> Tensor:
        """(n p, …) one kind of evidence on every patch of the call, class tokens left out."""
        kind = kind_of(name)
        number = self._number(name) if TOWER[kind].layer else self._feature
        found = getattr(self, f"_{kind}")(number)
        return found[:, self.tower.classes :].flatten(0, 1)  # type: ignore[no-any-return]

    def _class_attention(self, number: int) -> Tensor:
        """(n, p, h) of the class token, or the mean over all patches."""
        return self._received(number, bool(self.tower.classes))

    _class_attention_first = _class_attention

    def _tower_attention(self, number: int) -> Tensor:
        """(n, p, h) the mean over all tokens."""
        return self._received(number, False)

    def _received(self, number: int, from_class: bool) -> Tensor:
        """(n, p, h) attention in a layer, from its class token or the mean over all tokens."""
        queries, keys = map(self._heads, self._projected(number))
        call = self.taken[number, "call"]
        tables, lengths = self.tower.rotary(call), self.tower.blocks(call)
        if tables is not None:
            cos, sin = (table[None].float() for table in tables)
            queries, keys = (self.tower.turned(x, (cos, sin)) for x in (queries, keys))
        if lengths is None:
            return self._asked(queries, keys, from_class)
        parts = zip(*(torch.split(x, lengths, dim=2) for x in (queries, keys)), strict=True)
        return torch.cat([self._asked(q, k, from_class) for q, k in parts], dim=1)

    def _asked(self, queries: Tensor, keys: Tensor, from_class: bool) -> Tensor:
        """(n, p, h) attention of the class token, or the mean over all tokens."""
        keys = keys.transpose(-1, -2) * self.tower.scaling(keys.shape[-1])
        if from_class:
            share: Tensor = (queries[:, :, :1] @ keys).softmax(dim=-1)
            return share[:, :, 0].transpose(1, 2)
        p = queries.shape[2]
        total = sum(
            (queries[:, :, part] @ keys).softmax(dim=-1).sum(dim=2) for part in in_turn(p, p)
        )
        assert isinstance(total, Tensor)  # a picture has patches
        return (total / p).transpose(1, 2)

    def _tower_features(self, number: int) -> Tensor:
        """(n, p, d)."""
        found: Tensor = self.taken[number, "output"]
        return found.view(-1, *found.shape[-2:])

    def _tower_keys(self, number: int) -> Tensor:
        """(n, p, e)."""
        return self._heads(self._projected(number)[1]).mean(dim=1)

    def _class_match(self, number: int) -> Tensor:
        """(n, p)."""
        queries, keys = (x.float() for x in self._projected(number))
        lengths = self.tower.blocks(self.taken[number, "call"])
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

    def _match_keys(self, number: int) -> Tensor:
        """(n, p, d)."""
        return self._projected(number)[1]

    def _projected(self, number: int) -> tuple[Tensor, Tensor]:
        """(n, p, d) queries and keys of a layer, before rotation."""
        parts = len(self.tower.projections(self.tower.layers[0]))
        return self.tower.split(*(self.taken[number, i] for i in range(parts)))

    def _heads(self, x: Tensor) -> Tensor:
        """(n, h, p, e) in fp32, of (n, p, d)."""
        x = x.float()
        return x.view(*x.shape[:-1], self.tower.heads, -1).transpose(1, 2)


@contextmanager
def capturing(tower: Tower | None, needs: frozenset[str]) -> Iterator[TowerCapture | None]:
    """Captures the tower inside the block, where a strategy needs something of it."""
    if tower is None or not of_tower(needs):
        yield None
        return
    capture = TowerCapture(tower, needs)
    try:
        yield capture
    finally:
        capture.close()


def check_patches(model: nn.Module, pictures: Iterable[Picture]) -> None:
    """Refuses evidence of the vision tower about tokens whose patches are not known.

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


def measure(pictures: Sequence[Picture], capture: TowerCapture) -> list[Picture]:
    """The pictures with what the tower said about each of their tokens.

    A token's evidence is the mean over its patches (`Picture.patches`), zero for separators.
    """
    with torch.no_grad():
        whole = {name: capture.patches(name).detach() for name in sorted(capture.needs)}
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
