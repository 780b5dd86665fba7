"""Where visual tokens lie in the pictures that they describe.

A `Picture` says it for one image or video, on the host; `places` lays the pictures of a batch side
by side as the tensors that strategies read. Shapes: b samples, v visual tokens, n tokens of one
picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from tokenreduce.errors import BadOption
from tokenreduce.tokens import SPAN, Places

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
FIELDS = ("frame", "tile", "row", "column", "separator", "box")

Runs = Sequence[tuple[str, int]]
"""The visual tokens of a sample in reading order: so many of an image, then so many of a video …"""


@dataclass(frozen=True)
class Picture:
    """The visual tokens of one image or video, in reading order.

    Attributes:
        frame: (n,) which frame of a video; 0 for an image.
        tile: (n,) which view of the image: 0 the whole, 1 the high-resolution grid, …
        row, column: (n,) position in the tile's grid; a separator has the row that it ends and
            the column after the last one.
        separator: (n,) True for tokens that carry no picture (LLaVA-NeXT's newline).
        box: (n, 4) left, top, right, bottom as fractions of the picture that the model was given;
            `inside` moves them to the original where the processor has cropped or padded it.
        patches: (n, m) the patches that each token is made of, counted over everything that the
            tower was given in one call, class tokens left out; -1 where there are fewer than m.
            None where not known.
        measures: evidence of the vision tower on the tokens, by name: (n, …) each.
    """

    frame: Tensor
    tile: Tensor
    row: Tensor
    column: Tensor
    separator: Tensor
    box: Tensor
    patches: Tensor | None = None
    measures: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.row.shape[0])

    def __getitem__(self, part: slice) -> Picture:
        return self._each(lambda x: x[part])

    @classmethod
    def grid(
        cls, rows: int, columns: int, *, frames: int = 1, tile: int = 0, within: Box = WHOLE
    ) -> Picture:
        """`frames` grids of `rows` x `columns` tokens.

        Args:
            rows: of one frame.
            columns: of one frame.
            frames: one after the other.
            tile: the number of this view.
            within: the part of the picture that the grid covers.
        """
        frame, row, column = (
            x.flatten()
            for x in torch.meshgrid(
                torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij"
            )
        )
        return cls(
            frame,
            torch.full_like(row, tile),
            row,
            column,
            torch.zeros_like(row, dtype=torch.bool),
            moved(boxes(row, column, rows, columns), within),
        )

    @classmethod
    def unknown(cls, n: int) -> Picture:
        """`n` tokens of unknown layout: a square where `n` is one, else a single row."""
        side = math.isqrt(n)
        return cls.grid(side, side) if side * side == n else cls.grid(1, n)

    def of(self, first: int) -> Picture:
        """This picture, each of its tokens one patch: those from `first` on."""
        return replace(self, patches=torch.arange(first, first + len(self))[:, None])

    def over(self, rows: int, columns: int, block: int, first: int = 0) -> Picture:
        """This picture, each of its tokens a square of patches.

        Args:
            rows: of the patches of one frame.
            columns: of the patches of one frame.
            block: patches on a side of the square; those beyond the far sides are not there.
            first: the number of the picture's first patch.
        """
        step = torch.arange(block)
        y = (self.row[:, None] * block + step)[:, :, None]
        x = (self.column[:, None] * block + step)[:, None]
        index = first + (self.frame[:, None, None] * rows + y) * columns + x
        there = (y < rows) & (x < columns) & ~self.separator[:, None, None]
        return replace(self, patches=torch.where(there, index, -1).flatten(1))

    def shifted(self, first: int) -> Picture:
        """This picture, its patches counted from `first` on."""
        if self.patches is None:
            return self
        return replace(self, patches=torch.where(self.patches < 0, -1, self.patches + first))

    def inside(self, view: Box) -> Picture:
        """This picture with its boxes moved into `view`, the part of the original that was seen.

        Args:
            view: left, top, right, bottom as fractions of the original; beyond 0 to 1 where the
                picture was padded.
        """
        box = torch.where(self.separator[:, None], self.box, moved(self.box, view))
        return replace(self, box=box)

    @classmethod
    def join(cls, parts: Sequence[Picture]) -> Picture:
        """Parts of one picture, one after the other; each keeps its own frame and tile numbers."""
        shared = set.intersection(*(set(part.measures) for part in parts)) if parts else set()
        where = {name: torch.cat([getattr(part, name) for part in parts]) for name in FIELDS}
        measures = {name: torch.cat([part.measures[name] for part in parts]) for name in shared}
        patches = [part.patches for part in parts if part.patches is not None]
        known = len(patches) == len(parts)
        return cls(**where, patches=torch.cat(patches) if known else None, measures=measures)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Picture:
        where = {name: change(getattr(self, name)) for name in FIELDS}
        patches = None if self.patches is None else change(self.patches)
        measures = {name: change(x) for name, x in self.measures.items()}
        return Picture(**where, patches=patches, measures=measures)


def boxes(row: Tensor, column: Tensor, rows: int, columns: int) -> Tensor:
    """(n, 4) the fractions of the picture that the cells of a `rows` x `columns` grid cover."""
    left, top = column / columns, row / rows
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows], dim=1)


def moved(box: Tensor, view: Box) -> Tensor:
    """(n, 4) boxes, given as fractions of `view`, as fractions of what `view` is a part of."""
    left, top, right, bottom = view
    scale = torch.tensor([right - left, bottom - top] * 2)
    return box * scale + torch.tensor([left, top] * 2)


def assign(
    pictures: Mapping[str, Sequence[Picture]],
    samples: Sequence[Runs],
    start: Mapping[str, int] | None = None,
) -> list[list[Picture]] | None:
    """The pictures of each sample, given the runs of its visual tokens.

    Pictures of a kind are consumed in (batch, sequence) order. Beams repeat a sample's pictures:
    rows that follow each other with the same runs then share them. A pass over one chunk of a
    longer prompt has fewer tokens than the pictures: for a single sample these are the ones from
    `start` on.

    Args:
        pictures: by kind, in order.
        samples: per sample, the kind and number of tokens of each run.
        start: by kind, how many tokens have had their turn.

    Returns:
        Per sample its pictures in reading order, or None when they do not add up to the tokens;
        the layout is then unknown.
    """
    start = start or {}
    total = {kind: sum(map(len, queue)) for kind, queue in pictures.items()}
    need: dict[str, int] = {}
    for kind, n in (run for runs in samples for run in runs):
        need[kind] = need.get(kind, 0) + n
    if len(samples) == 1 and all(n <= total.get(kind, 0) for kind, n in need.items()):
        cut = {k: _window(pictures[k], start.get(k, 0), n) for k, n in need.items()}
        pictures, total = cut, {k: sum(map(len, queue)) for k, queue in cut.items()}
    if any(not total.get(kind) or n % total[kind] for kind, n in need.items()):
        return None
    repeats = {n // total[kind] for kind, n in need.items()} or {1}
    if len(repeats) > 1:
        return None
    (times,) = repeats
    queues = {kind: list(pictures[kind]) for kind in need}
    rows: list[list[Picture]] = []
    for i, runs in enumerate(samples):
        if i % times:
            if list(runs) != list(samples[i - 1]):
                return None
            rows.append(rows[-1])
            continue
        mine: list[Picture] = []
        for kind, n in runs:
            found = _take(queues[kind], n)
            if found is None:
                return None
            mine += found
        rows.append(mine)
    return rows


def by_run(
    parts: Sequence[Picture], visual: Sequence[bool], join: Callable[[list[Picture]], Picture]
) -> list[Picture]:
    """The pictures of a sample whose `parts` are given; each has a run of visual tokens of its own.

    Args:
        parts: in reading order.
        visual: which of the sample's tokens are visual; text lies between two runs.
        join: makes one picture of the parts in a run.

    Returns:
        A picture per run; the parts themselves where they do not fit into the runs.
    """
    queue, found = list(parts), []
    for n in [sum(same) for yes, same in groupby(visual) if yes]:
        mine = _take(queue, n)
        if mine is None:
            return list(parts)
        found.append(join(mine))
    return found


def _take(queue: list[Picture], n: int) -> list[Picture] | None:
    """The first pictures of a queue, `n` tokens in all; they leave it."""
    found: list[Picture] = []
    while n > 0 and queue:
        found.append(queue.pop(0))
        n -= len(found[-1])
    return found if n == 0 else None


def _window(pictures: Sequence[Picture], start: int, n: int) -> list[Picture]:
    """The parts of pictures that tokens `start` to `start + n` are of."""
    found, at = [], 0
    for picture in pictures:
        low, high = max(start - at, 0), min(start + n - at, len(picture))
        if low < high:
            found.append(picture[low:high])
        at += len(picture)
    return found


def places(samples: Sequence[Sequence[Picture]], device: torch.device) -> Places:
    """The places of a batch's visual tokens, (b, v) each, from every sample's pictures."""
    rows = [_sample(list(pictures)) for pictures in samples]
    width = max((row.shape[1] for row in rows), default=0)
    table = torch.zeros(len(rows), 9, width, dtype=torch.long)
    for table_row, row in zip(table, rows, strict=True):
        table_row[:, : row.shape[1]] = row
    image, frame, tile, row, column, line, separator, x, y = table.to(device).unbind(1)
    return Places(image, frame, tile, row, column, line, separator.bool(), x, y)


def _sample(pictures: list[Picture]) -> Tensor:
    """(9, v) image, frame, tile, row, column, line, separator, x and y of a sample's tokens."""
    if not pictures:
        return torch.zeros(9, 0, dtype=torch.long)
    image = torch.cat([torch.full((len(p),), i) for i, p in enumerate(pictures)])
    frame, tile, row, column, separator = (
        torch.cat([getattr(p, name).long() for p in pictures]) for name in FIELDS[:5]
    )
    # tokens of a row follow each other, so that rows can be numbered as they come
    key = torch.stack([image, frame, tile, row])
    line = (key[:, 1:] != key[:, :-1]).any(dim=0).long().cumsum(dim=0)
    line = torch.nn.functional.pad(line, (1, 0))
    box = torch.cat([p.box for p in pictures])
    centre = ((box[:, :2] + box[:, 2:]) / 2 * SPAN).round().long()
    x, y = torch.where((box[:, 2:] > box[:, :2]).all(dim=1, keepdim=True), centre, -1).T
    return torch.stack([image, frame, tile, row, column, line, separator, x, y])


def measured(samples: Sequence[Sequence[Picture]], name: str) -> Tensor:
    """(b, v, …) one measure of a batch's visual tokens; zeros at padding.

    Raises:
        BadOption: a picture that was given by hand does not carry it.
    """
    if not all(name in p.measures for pictures in samples for p in pictures):
        raise BadOption(
            f"the strategy needs {name!r}, which a picture given by hand does not carry: "
            f"replace(picture, measures={{{name!r}: …}}), one row for each of its visual tokens"
        )
    rows = [torch.cat([p.measures[name] for p in pictures]) for pictures in samples if pictures]
    found = iter(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
    blank = torch.zeros_like(next(iter(rows), torch.zeros(0)))
    width = max(len(row) for row in rows)
    blank = blank.new_zeros(width, *blank.shape[1:])
    return torch.stack([next(found) if pictures else blank for pictures in samples])
