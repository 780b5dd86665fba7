"""Where visual tokens stand in the pictures that they describe.

A `Picture` says it for one image, on the host; `places` lays the pictures of a batch side by side
as the tensors that strategies read. Shapes: b samples, v visual tokens, n tokens of one picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenreduce.tokens import Places


@dataclass(frozen=True)
class Picture:
    """The visual tokens of one image, in reading order.

    Attributes:
        tile: (n,) which view of the image: 0 the whole, 1 the high-resolution grid, …
        row, column: (n,) position in the tile's grid; a separator has the row that it ends and
            the column after the last one.
        separator: (n,) True for tokens that carry no picture (LLaVA-NeXT's newline).
        box: (n, 4) left, top, right, bottom as fractions of the picture that the model was given;
            `inside` moves them to the original where the processor has cropped or padded it.
    """

    tile: Tensor
    row: Tensor
    column: Tensor
    separator: Tensor
    box: Tensor

    def __len__(self) -> int:
        return int(self.row.shape[0])

    @classmethod
    def grid(cls, rows: int, columns: int) -> Picture:
        """One tile of `rows` x `columns` tokens that covers the whole picture."""
        row = torch.arange(rows).repeat_interleave(columns)
        column = torch.arange(columns).repeat(rows)
        return cls(
            torch.zeros_like(row),
            row,
            column,
            torch.zeros_like(row, dtype=torch.bool),
            boxes(row, column, rows, columns),
        )

    @classmethod
    def unknown(cls, n: int) -> Picture:
        """`n` tokens of unknown layout: a square where `n` is one, else a single row."""
        side = math.isqrt(n)
        return cls.grid(side, side) if side * side == n else cls.grid(1, n)

    def inside(self, view: tuple[float, float, float, float]) -> Picture:
        """This picture with its boxes moved into `view`, the part of the original that was seen.

        Args:
            view: left, top, right, bottom as fractions of the original; beyond 0 to 1 where the
                picture was padded.
        """
        left, top, right, bottom = view
        scale = torch.tensor([right - left, bottom - top] * 2)
        box = self.box * scale + torch.tensor([left, top] * 2)
        return replace(self, box=torch.where(self.separator[:, None], self.box, box))

    @classmethod
    def join(cls, tiles: Sequence[Picture]) -> Picture:
        """The tiles of one image, one after the other; each keeps its own tile number."""
        return cls(
            *(
                torch.cat([getattr(t, name) for t in tiles])
                for name in ("tile", "row", "column", "separator", "box")
            )
        )


def boxes(row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    """(n, 4) the fractions of the picture that the cells of a `rows` x `columns` grid cover."""
    left, top = column / columns, row / rows
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows], dim=1)


def assign(
    pictures: Sequence[Picture], counts: Sequence[int], start: int = 0
) -> list[list[Picture]] | None:
    """The pictures of each sample, given every sample's number of visual tokens.

    Pictures are consumed in (batch, sequence) order. Beams repeat a sample's pictures: rows that
    follow each other with the same count then share them. A pass over one chunk of a longer prompt
    has fewer tokens than the pictures: for a single sample these are the ones from `start` on.

    Returns None when the pictures do not add up to the counts; the layout is then unknown.
    """
    total, need = sum(len(p) for p in pictures), sum(counts)
    if len(counts) == 1 and need < total:
        return _window(pictures, start, need)
    if not total or need % total:
        return None
    repeats, queue = need // total, list(pictures)
    rows: list[list[Picture]] = []
    for sample, count in enumerate(counts):
        if sample % repeats:
            rows.append(rows[-1])
            continue
        mine: list[Picture] = []
        while sum(len(p) for p in mine) < count and queue:
            mine.append(queue.pop(0))
        rows.append(mine)
    fits = all(sum(len(p) for p in row) == n for row, n in zip(rows, counts, strict=True))
    return rows if fits else None


def _window(pictures: Sequence[Picture], start: int, n: int) -> list[list[Picture]] | None:
    found, at = [], 0
    for p in pictures:
        low, high = max(start - at, 0), min(start + n - at, len(p))
        if low < high:
            part = slice(low, high)
            fields = (p.tile, p.row, p.column, p.separator, p.box)
            found.append(Picture(*(x[part] for x in fields)))
        at += len(p)
    return [found] if sum(len(p) for p in found) == n else None


def places(samples: Sequence[Sequence[Picture]], device: torch.device) -> Places:
    """The places of a batch's visual tokens, (b, v) each, from every sample's pictures."""
    rows = [_sample(list(pictures)) for pictures in samples]
    width = max((row.shape[1] for row in rows), default=0)
    table = torch.zeros(len(rows), 6, width, dtype=torch.long)
    for table_row, row in zip(table, rows, strict=True):
        table_row[:, : row.shape[1]] = row
    image, tile, row_, column, line, separator = table.to(device).unbind(1)
    return Places(image, tile, row_, column, line, separator.bool())


def _sample(pictures: list[Picture]) -> Tensor:
    """(6, v) image, tile, row, column, line and separator of one sample's tokens."""
    if not pictures:
        return torch.zeros(6, 0, dtype=torch.long)
    image = torch.cat([torch.full((len(p),), i) for i, p in enumerate(pictures)])
    tile, row, column, separator = (
        torch.cat([getattr(p, name).long() for p in pictures])
        for name in ("tile", "row", "column", "separator")
    )
    # tokens of a row follow each other, so that rows can be numbered as they come
    key = torch.stack([image, tile, row])
    line = (key[:, 1:] != key[:, :-1]).any(dim=0).long().cumsum(dim=0)
    line = torch.nn.functional.pad(line, (1, 0))
    return torch.stack([image, tile, row, column, line, separator])
