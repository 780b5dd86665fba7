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

from tokenreduce.testing.families.family import IMAGE, VIDEO, WIDTH, WORDS, Family, Shot

Side = Literal["left", "right"]
IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One sample before padding: its tokens, their labels, and its pictures."""

    ids: list[int]
    labels: list[int]
    shots: list[Shot]


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and what is known about it.

    Attributes:
        inputs: `input_ids` with what the pictures add, or `inputs_embeds`; always with
            `attention_mask`.
        visual: (b, l) True at visual tokens.
        real: (b, l) False at padding.
        labels: (b, l) two answers per sample, the rest ignored.
        family, samples: what it was made from.
    """

    inputs: dict[str, Tensor]
    visual: Tensor
    real: Tensor
    labels: Tensor
    family: Family
    samples: tuple[Sample, ...]

    @property
    def bare(self) -> bool:
        """Whether the caller marks the visual tokens."""
        return self.family.bare

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
        return assemble(self.family, self.samples[i : i + 1], "left")

    def then(self, model: Any, tokens: Tensor) -> Batch:
        """This batch followed by the text `tokens` (b, t): what decoding has seen in the end."""
        b, t = tokens.shape
        inputs = dict(self.inputs)
        if self.bare:
            new = model.get_input_embeddings()(tokens).detach()
            inputs["inputs_embeds"] = torch.cat([inputs["inputs_embeds"], new], dim=1)
        else:
            ids = torch.cat([inputs["input_ids"], tokens], dim=1)
            inputs |= {"input_ids": ids, **self.family.marks_of(ids)}
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
    shots = [family.shot(i, generator) for i in range(sum(images))]
    samples, at = [], 0
    for i, n in enumerate(images):
        mine, at = shots[at : at + n], at + n
        first = [token for shot in mine for token in shot.ids] if family.pictures_first else []
        ids = [*first, 1, *_words(4 + i, generator)]
        answer = [False] * len(ids)
        for shot in [] if family.pictures_first else mine:
            ids += shot.ids + _words(2, generator)
            answer += [False] * len(shot.ids) + [True, False]
        ids += _words(3 + 2 * i, generator)
        answer += [False] + [True] * (2 + 2 * i)
        labels = [token if yes else IGNORED for token, yes in zip(ids, answer, strict=True)]
        samples.append(Sample(ids, labels, mine))
    return assemble(family, tuple(samples), side)


def assemble(family: Family, samples: tuple[Sample, ...], side: Side) -> Batch:
    """Samples padded to one length, with the inputs that their pictures add."""
    length = max(len(sample.ids) for sample in samples)

    def padded(values: list[int], filler: int) -> list[int]:
        gap = [filler] * (length - len(values))
        return gap + values if side == "left" else values + gap

    tokens = torch.tensor([padded(sample.ids, 0) for sample in samples])
    real = torch.tensor([padded([1] * len(sample.ids), 0) for sample in samples]).bool()
    labels = torch.tensor([padded(sample.labels, IGNORED) for sample in samples])
    visual = (tokens == IMAGE) | (tokens == VIDEO)
    shots = [sample.shots for sample in samples]
    inputs = family.collate(shots) if any(shots) else {}
    if family.bare:
        table = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(0))
        shown = inputs.pop("shown", torch.zeros(0, WIDTH))
        inputs["inputs_embeds"] = table[tokens].masked_scatter(visual[..., None], shown)
    else:
        inputs |= {"input_ids": tokens, **family.marks_of(tokens)}
    return Batch(inputs | {"attention_mask": real.long()}, visual, real, labels, family, samples)


def _words(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(10, WORDS, (n,), generator=generator).tolist()
