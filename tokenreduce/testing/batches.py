"""Inputs for the tiny models, as a caller would give them: ragged, padded, any number of images.

Shapes: b samples, l sequence, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tokenreduce.testing.models import IMAGE, TILE, WIDTH, WORDS, Family

Side = Literal["left", "right"]
SIZES = ((12, 22), (24, 24), (22, 12), (16, 24))
"""Heights and widths of the pictures that LLaVA-NeXT gets, one after the other."""
RUNS = (16, 25, 9)
"""Visual tokens of the pictures that a bare decoder gets, one after the other."""
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and what is known about it.

    Attributes:
        inputs: `input_ids` with `pixel_values` (and `image_sizes`), or `inputs_embeds`; always
            with `attention_mask`.
        visual: (b, l) True at visual tokens.
        real: (b, l) False at padding.
        images: pictures per sample.
        bare: whether the caller marks the visual tokens.
        labels: (b, l) two answers per sample, the rest ignored.
    """

    inputs: dict[str, Tensor]
    visual: Tensor
    real: Tensor
    images: tuple[int, ...]
    bare: bool
    labels: Tensor

    @property
    def counts(self) -> list[int]:
        """Visual tokens per sample."""
        return [int(n) for n in self.visual.sum(1)]

    @contextmanager
    def shown(self, reduction: Any) -> Iterator[None]:
        """Marks the visual tokens where the reduction cannot find them by itself."""
        if reduction is None or not self.bare:
            yield
            return
        with reduction.visual(self.visual):
            yield

    def run(self, model: Any, reduction: Any = None, **options: Any) -> Any:
        """The model's output on this batch, under a reduction if there is one."""
        with self.shown(reduction):
            return model(**self.inputs, **options)

    def positions(self) -> Tensor:
        """(b, l) position ids counted over real tokens, as `generate` makes them."""
        return (self.real.long().cumsum(1) - 1).clamp(min=0)

    def row(self, i: int) -> Batch:
        """Sample `i` alone, without padding."""
        real = self.real[i]
        start = sum(self.images[:i])
        inputs = {}
        for name, x in self.inputs.items():
            if name in ("pixel_values", "image_sizes"):
                if self.images[i]:
                    inputs[name] = x[start : start + self.images[i]]
            else:
                inputs[name] = x[i : i + 1, real]
        return replace(
            self,
            inputs=inputs,
            visual=self.visual[i : i + 1, real],
            real=self.real[i : i + 1, real],
            images=(self.images[i],),
            labels=self.labels[i : i + 1, real],
        )

    def then(self, model: Any, tokens: Tensor) -> Batch:
        """This batch followed by the text `tokens` (b, t): what decoding has seen in the end."""
        b, t = tokens.shape
        inputs = dict(self.inputs)
        if self.bare:
            new = model.get_input_embeddings()(tokens).detach()
            inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], new], dim=1)
        else:
            inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
        ones = torch.ones(b, t, dtype=torch.bool)
        real = torch.cat([self.real, ones], dim=1)
        return replace(
            self,
            inputs=inputs | {"attention_mask": real.long()},
            visual=torch.cat([self.visual, ~ones], dim=1),
            real=real,
            labels=torch.cat([self.labels, torch.full((b, t), IGNORED)], dim=1),
        )


def batch(
    family: Family, images: tuple[int, ...] = (1, 0, 2), side: Side = "left", seed: int = 0
) -> Batch:
    """A ragged batch: sample i has `images[i]` pictures, and its own length of text."""
    generator = torch.Generator().manual_seed(1 + seed)
    pictures, runs = _pictures(family, sum(images), generator)
    rows, marks, answers, at = [], [], [], 0
    for i, n in enumerate(images):
        ids, answer = _words(4 + i, generator), [False] * (5 + i)
        ids = [1, *ids]
        for run in runs[at : at + n]:
            ids += [IMAGE] * run + _words(2, generator)
            answer += [False] * run + [True, False]
        ids += _words(3 + 2 * i, generator)
        answer += [False] + [True] * (2 + 2 * i)
        at += n
        rows.append(ids)
        marks.append([token == IMAGE for token in ids])
        answers.append([token if yes else IGNORED for token, yes in zip(ids, answer, strict=True)])
    length = max(len(row) for row in rows)

    def padded(values: list[Any], filler: Any) -> list[Any]:
        gap = [filler] * (length - len(values))
        return gap + values if side == "left" else values + gap

    tokens = torch.tensor([padded(row, 0) for row in rows])
    visual = torch.tensor([padded(mark, False) for mark in marks])
    real = torch.tensor([padded([True] * len(row), False) for row in rows])
    inputs = {"attention_mask": real.long()}
    if family.bare:
        table = torch.randn(WORDS, WIDTH, generator=generator)
        shown = torch.randn(int(visual.sum()), WIDTH, generator=generator)
        inputs["inputs_embeds"] = table[tokens].masked_scatter(visual[..., None], shown)
    else:
        inputs |= {"input_ids": tokens} | pictures
    labels = torch.tensor([padded(answer, IGNORED) for answer in answers])
    return Batch(inputs, visual, real, images, family.bare, labels)


def _words(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(10, WORDS, (n,), generator=generator).tolist()


def _pictures(
    family: Family, n: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], list[int]]:
    """The image inputs of `n` pictures, and how many tokens each becomes."""
    if family.bare:
        return {}, [RUNS[i % len(RUNS)] for i in range(n)]
    if not n:
        return {}, []
    if not family.anyres:
        return {"pixel_values": torch.randn(n, 3, 20, 20, generator=generator)}, [25] * n
    sizes = [SIZES[i % len(SIZES)] for i in range(n)]
    tiles = [1 + -(-height // TILE) * -(-width // TILE) for height, width in sizes]
    pixels = torch.randn(n, max(tiles), 3, TILE, TILE, generator=generator)
    return (
        {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)},
        [_packed(height, width) for height, width in sizes],
    )


def _packed(height: int, width: int) -> int:
    """Tokens of a LLaVA-NeXT picture: the whole, then the tiles without their padding.

    The picture is scaled to fit the tiles, and every row ends with a newline token.
    """
    side = TILE // 4
    rows, columns = -(-height // TILE) * side, -(-width // TILE) * side
    if width / height > columns / rows:
        padding = (rows - round(height * columns / width, 7) // 1) // 2
        rows -= 2 * int(padding)
    else:
        padding = (columns - round(width * rows / height, 7) // 1) // 2
        columns -= 2 * int(padding)
    return side * side + rows * (columns + 1)
