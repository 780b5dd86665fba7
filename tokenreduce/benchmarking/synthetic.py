"""Prompts: embeddings of any number of visual tokens, or a picture from its pixels on.

Where embeddings are given and the visual ones are marked, no picture needs to be found for a count,
and every family is measured on the same ones. What a strategy asks of the vision tower then comes
with the marks, drawn at random. A prompt with a picture runs the tower, and has the number of
visual tokens that the family gives it.
Shapes: b samples, v visual tokens, l sequence, d width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import tokenreduce as tr
from tokenreduce.adapter import Adapter, adapter_for
from tokenreduce.evidence import EVIDENCE, TOWER, kind_of

HEADS, WIDTH = 16, 1024
"""Of the vision tower that is stood in for: CLIP's large one."""
SIZES = {"h": HEADS, "e": WIDTH}
MEASURES = {name: tuple(SIZES[x] for x in kind.dims if x in SIZES) for name, kind in TOWER.items()}
"""What a tower tells of a token, and the shape of it."""


@dataclass(frozen=True)
class MarkedPrompt:
    """Embeddings of `visual` and `text` tokens in `batch` samples, all alike, without padding."""

    visual: int
    text: int = 64
    batch: int = 1
    seed: int = 0

    tower = False

    @property
    def length(self) -> int:
        """Tokens of a sample."""
        return self.visual + self.text

    def embeddings(self, model: Any, length: int | None = None, stream: int = 0) -> Tensor:
        """(b, l, d) drawn anew at every call, the same for a `stream`; of `length` tokens."""
        table = model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(self.seed + stream)
        size = (self.batch, length or self.length, table.shape[1])
        return torch.randn(size, generator=generator).to(table.device, table.dtype)

    def mask(self, device: torch.device) -> Tensor:
        """(b, l) True at the visual tokens, which lie a little after the middle of the text."""
        before = self.text * 35 // 64  # LLaVA's system prompt: 35 of 64
        mask = torch.zeros(self.batch, self.length, dtype=torch.bool, device=device)
        mask[:, before : before + self.visual] = True
        return mask

    def pictures(self, needs: Iterable[str] = ()) -> list[tr.Picture]:
        """The pictures of all samples, in reading order, with the evidence that `needs` names."""
        return [picture(self.visual, self.seed, needs)] * self.batch

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """What the model is called with."""
        return {"inputs_embeds": self.embeddings(model)}

    def token(self, model: Any) -> dict[str, Tensor]:
        """What a decoding step is called with."""
        return {"inputs_embeds": self.embeddings(model, 1, stream=1)}

    def reader(self, model: Any) -> Adapter:
        """The adapter that a reduction of this prompt reads the model with."""
        return with_synthetic_tower(adapter_for(model))

    def shown(self, reduction: tr.Reduction) -> AbstractContextManager[Any]:
        """Tells a reduction which tokens are visual."""
        pictures = self.pictures(reduction.strategy.needs)
        return reduction.visual(self.mask(reduction.model.device), pictures)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PicturePrompt:
    """A picture and words as the model's own inputs: the vision tower is part of the prefill."""

    one: Mapping[str, Tensor] = field(repr=False)
    visual: int
    text: int
    batch: int = 1

    tower = True

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """What the model is called with: the same sample `batch` times."""
        return {name: torch.cat([x] * self.batch) for name, x in self.one.items()}

    def token(self, model: Any) -> dict[str, Tensor]:
        """What a decoding step is called with."""
        return {"input_ids": self.one["input_ids"][:, -1:].repeat(self.batch, 1)}

    def reader(self, model: Any) -> Adapter:
        """The adapter of the family."""
        return adapter_for(model)

    def shown(self, reduction: tr.Reduction) -> AbstractContextManager[Any]:
        """Nothing to tell: placeholders mark the visual tokens."""
        return nullcontext()


def picture(visual: int, seed: int = 0, needs: Iterable[str] = ()) -> tr.Picture:
    """A fifth of the tokens for the whole picture and the rest for its crops, with measures.

    Every one, and those in a layer of the tower that `needs` names.
    """
    side = int((visual / 5) ** 0.5)
    parts = []
    if side:
        parts = [tr.Picture.grid(side, side), tr.Picture.grid(2 * side, 2 * side, tile=1)]
    rest = visual - 5 * side * side
    if rest:
        parts.append(tr.Picture.grid(1, rest, tile=len(parts)))
    made = tr.Picture.join(parts)
    generator = torch.Generator().manual_seed(seed)
    names = dict.fromkeys([*MEASURES, *(need for need in needs if kind_of(need) in MEASURES)])
    measures = {
        name: torch.rand(visual, *MEASURES[kind_of(name)], generator=generator) for name in names
    }
    return replace(made, measures=measures)


def with_synthetic_tower(reader: Adapter) -> Adapter:
    """The adapter of a family, for prompts whose pictures bring what its tower would say."""

    class WithSyntheticTower(type(reader)):  # type: ignore[misc]
        evidence = frozenset(EVIDENCE)
        families = frozenset[str]()

        def missing_evidence(self, needs: frozenset[str], model: Any) -> frozenset[str]:
            return frozenset()

        def unsupported_reason(self, model: Any) -> str | None:
            return None

        def tower(self, base: Any) -> None:
            """Not watched: it does not run."""

    return WithSyntheticTower()
