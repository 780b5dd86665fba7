"""Puts encoded conversations into one batch, as the family's own processor would."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from tokenreduce.checks import one_of
from tokenreduce.errors import BadOption

SIDES = ("right", "left")
IGNORED = -100
"""The label that transformers' losses skip."""


class Collator:
    """A batch of rows from an `Encoder`.

    What has an entry per token is padded on `side`. Pixel values, grids and sizes go one after the
    other, with zeros where a picture has fewer tiles or pixels than others; families that have a
    row of pictures per sample (Idefics3, SmolVLM) get one for samples without pictures, too.

    Args:
        processor: of the family, with a tokenizer that has a padding token.
        side: `"right"`, as in training, or `"left"`.

    Raises:
        ValueError: an unknown side, or no padding token.
    """

    def __init__(self, processor: Any, side: str = "right") -> None:
        one_of(side, SIDES, "side")
        if processor.tokenizer.pad_token_id is None:
            raise BadOption(
                f"the tokenizer of {type(processor).__name__} has no padding token: set "
                "processor.tokenizer.pad_token"
            )
        self.processor = processor
        self.side = side
        self._fills = {"input_ids": int(processor.tokenizer.pad_token_id), "labels": IGNORED}

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The batch: (b, l) per token, l the longest of the rows; everything else concatenated.

        Raises:
            ValueError: pictures that the family cannot have in one batch.
        """
        keys = dict.fromkeys(key for row in rows for key in row)
        tokens = [key for key in keys if all(_per_token(row, key) for row in rows)]
        batch = {key: self._padded(key, [row[key] for row in rows]) for key in tokens}
        for key in keys:
            if key not in batch:
                batch[key] = self._joined(key, [row.get(key) for row in rows])
        return batch

    def _padded(self, key: str, values: Sequence[Tensor]) -> Tensor:
        longest = max(map(len, values))
        fill = self._fills.get(key, 0)

        def filled(value: Tensor) -> Tensor:
            missing = longest - len(value)
            return pad(value, (0, missing) if self.side == "right" else (missing, 0), value=fill)

        return torch.stack([filled(value) for value in values])

    def _joined(self, key: str, values: Sequence[Tensor | None]) -> Tensor:
        """Along the first dimension; the others grow to the largest, with zeros."""
        there = [value for value in values if value is not None]
        sizes = [max(extent) for extent in zip(*(v.shape[1:] for v in there), strict=True)]
        if any(list(v.shape[1:]) != sizes for v in there) and not self._fills_up:
            shapes = ", ".join(str(tuple(v.shape)) for v in there)
            raise BadOption(
                f"{type(self.processor).__name__} has no batches of pictures that are cut into "
                f"different numbers of tiles ({key} {shapes}): use batches of one"
            )
        if self._by_sample:
            missing = there[0].new_zeros(1, *sizes)
            there = [missing if value is None else value for value in values]
        return torch.cat([_grown(value, sizes) for value in there])

    @cached_property
    def _by_sample(self) -> bool:
        """Whether pixel values have a row per sample, not per picture or patch."""
        one = Image.new("RGB", (64, 64))
        made = self.processor.image_processor([[one], [one, one]], return_tensors="pt")
        return len(made["pixel_values"]) == 2

    @cached_property
    def _fills_up(self) -> bool:
        """Whether the family's own batches hold pictures of different shapes."""
        shapes = [[Image.new("RGB", (width, 64))] for width in (64, 128, 192, 512)]
        try:
            self.processor.image_processor(shapes, return_tensors="pt")
        except (ValueError, RuntimeError):  # of transformers itself, or of torch.stack in it
            return False
        return True


def _per_token(row: dict[str, Tensor], key: str) -> bool:
    return key in row and row[key].ndim == 1 and len(row[key]) == len(row["input_ids"])


def _grown(value: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [extent - own for extent, own in zip(sizes, value.shape[1:], strict=True)]
    return pad(value, [n for extent in reversed(missing) for n in (0, extent)])
