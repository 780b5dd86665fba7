"""What a forward pass says about its tokens: which are visual, real, asking; read once per prompt.

Shapes: b samples, l sequence, r asking tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.adapter import IMAGE, VIDEO, Adapter
from tokenreduce.engine.call import ModelCall
from tokenreduce.engine.sequence import Sequence
from tokenreduce.geometry import Picture, Runs, assign, joined, places


def merged_kinds(call: ModelCall) -> set[str]:
    """The kinds of pictures whose features this pass puts into the text.

    Only their placeholder ids are visual: a generated placeholder id is text like any other.
    """
    encoded = {str(kind) for kind, value in call.encoded.items() if value is not None}
    return encoded | {VIDEO if "video" in name else IMAGE for name in call.raw}


@dataclass
class Album:
    """The pictures of the latest encoder calls by kind; `used` counts tokens already placed.

    Where the encoder is given parts of pictures, `joined` makes a picture of those of a run, or
    `grouped` pictures of those of a sample, by its token ids.
    """

    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    joined: Callable[[list[Picture]], Picture] | None = None
    grouped: Callable[[list[Picture], list[int], list[bool]], list[Picture]] | None = None

    def put(self, kind: str, pictures: list[Picture]) -> None:
        """Takes in what an encoder call was about; nothing of it has had its turn."""
        if self.pictures.get(kind) is not pictures:
            self.pictures[kind], self.used[kind] = pictures, 0


def placeholders(adapter: Adapter, base: nn.Module, call: ModelCall) -> Tensor | None:
    """(b, l) the kind of picture that each placeholder of this pass stands for, or None.

    0 is text, n the n-th of `adapter.visual_ids`. Kinds may share an id (GLM-4V).
    """
    merged, ids = merged_kinds(call), adapter.visual_ids(base.config)
    if not merged & set(ids):
        return None
    tokens, embeds = call.ids, call.embeddings
    if tokens is not None:
        masks = [tokens == number for number in ids.values()]
    elif embeds is not None:
        table: Any = base
        numbers = torch.tensor(tuple(ids.values()), device=embeds.device)
        masks = [(embeds == row).all(dim=-1) for row in table.get_input_embeddings()(numbers)]
    else:
        return None
    found = torch.zeros_like(masks[0], dtype=torch.long)
    for number, (kind, mask) in enumerate(zip(ids, masks, strict=True), start=1):
        if kind in merged:
            found = found.masked_fill(mask, number)
    return found


def chunk(mask: Tensor, batch: int, start: int, length: int) -> Tensor | None:
    """The part of a caller's mask (b, l_all) that a pass covers, or None where nothing is visual.

    Beams repeat every row; tokens behind the mask (generated ones) are text.
    """
    if batch != mask.shape[0]:
        if batch % mask.shape[0]:
            raise ValueError(
                f"the visual mask has {mask.shape[0]} rows, but the model was called with {batch}"
            )
        mask = mask.repeat_interleave(batch // mask.shape[0], dim=0)
    part = mask[:, start : start + length]
    if part.shape[1] == 0:
        return None
    return nn.functional.pad(part, (0, length - part.shape[1]))


def real_tokens(mask: Any, start: int, length: int) -> Tensor | None:
    """(b, l) False at padding, from a 2-D attention mask over the cache and this pass."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    return mask[:, start : start + length] if mask.shape[1] >= start + length else mask[:, -length:]


def before_answers(labels: Tensor) -> Tensor:
    """(b, l) True at every token right before an answer span (PyramidDrop's training queries)."""
    supervised = labels != -100
    starts = supervised[:, 1:] & ~supervised[:, :-1]
    return nn.functional.pad(starts, (0, 1))


@dataclass(frozen=True)
class Given:
    """What a call has told of its tokens, beside which of them are visual.

    Attributes:
        real: (b, l) False at padding; None when there is none.
        labels: (b, l) or None; every token right before an answer is a query token.
        drafts: without labels the query token is the last real one before so many last positions,
            where that is behind the pictures; else the last real one.
        ids: (b, l) token ids, where the model was given any.
        positions: (b, l) or (axes, b, l) position ids, where the caller gave any.
        mask: the attention mask as it was given; one of four axes says which tokens see which.
    """

    real: Tensor | None = None
    labels: Tensor | None = None
    drafts: int = 0
    ids: Tensor | None = None
    positions: Tensor | None = None
    mask: Any = None


def lengths(seq: Sequence, real: Tensor | None) -> tuple[int, ...]:
    """Real tokens per sample of a pass without visual tokens (sync: once per prompt)."""
    if real is None:
        return (seq.length,) * seq.batch
    return tuple(real.bool().sum(1).tolist())


def describe(
    seq: Sequence, kind: Tensor, names: tuple[str, ...], given: Given, album: Album
) -> bool:
    """Fills `seq` with what is known of its visual tokens; False when it has none after all.

    `kind` (b, l) is 0 for text, else the number of a kind of picture in `names`, counted from 1.
    """
    real = None if given.real is None else given.real.to(kind.device, torch.bool)
    if real is not None:
        kind = kind * real
    visual = kind > 0
    asks, labels = None, given.labels
    if labels is not None and labels.shape == visual.shape:
        asks = before_answers(labels.to(visual.device))
        asks = asks if real is None else asks & real
        answered = labels.to(visual.device) != -100
        seq.question = answered.cumsum(dim=1) == 0
    rows = [visual.sum(1)]
    rows.append(rows[0].new_full(rows[0].shape, seq.length) if real is None else real.sum(1))
    rows.append(rows[0].new_zeros(rows[0].shape) if asks is None else asks.sum(1))
    text = ~visual[:, 0] if real is None else ~visual[:, 0] & real[:, 0]
    rows.append(text.to(rows[0].dtype))
    rows.append(_restarts(given.positions, real, visual) + _apart(given.mask, visual))
    rows += [(kind == number).sum(1) for number in range(1, len(names) + 1)]
    # sync: once per prompt, so that every later count is known on the host
    counts, present, answers, first, restarts, *of_kind = torch.stack(rows).tolist()
    if not any(counts):
        seq.texts = tuple(present)
        return False
    seq.visual, seq.counts, seq.text_first = visual, tuple(counts), all(first)
    seq.restarts = any(restarts)
    seq.real = None if real is None or all(n == seq.length for n in present) else real
    seq.texts = tuple(n - v for n, v in zip(present, counts, strict=True))
    seq.asking, seq.asking_valid = _asking(seq, asks, max(answers), given.drafts)
    seq.pictures = _pictures(seq, kind, names, of_kind, album, given.ids)
    seq.places = places(seq.pictures, seq.device)
    seq.separators = max(
        (sum(int(p.separator.sum()) for p in row) for row in seq.pictures), default=0
    )
    return True


def _pictures(
    seq: Sequence,
    kind: Tensor,
    names: tuple[str, ...],
    of_kind: list[list[int]],
    album: Album,
    ids: Tensor | None,
) -> list[list[Picture]]:
    """Per sample, the pictures that its visual tokens stand for, of unknown shape where unknown."""
    visual = kind > 0
    found = assign(album.pictures, _runs(kind, names, of_kind), album.used)
    for name, number in zip(names, map(sum, of_kind), strict=True):
        album.used[name] = album.used.get(name, 0) + number
    if found is None:
        return [[Picture.unknown(n)] if n else [] for n in seq.counts]
    if album.joined is not None:
        return [joined(x, n, album.joined) for x, n in zip(found, _stretches(visual), strict=True)]
    if album.grouped is not None and ids is not None:
        both = zip(ids.tolist(), visual.tolist(), strict=True)  # sync: once per prompt
        return [album.grouped(x, *row) for x, row in zip(found, both, strict=True)]
    return found


def _restarts(positions: Tensor | None, real: Tensor | None, visual: Tensor) -> Tensor:
    """(b,) how often a row counts from its beginning again: several prompts are packed into it.

    Positions with axes do so where all of them are back; one axis may fall inside a picture.
    """
    none = visual.new_zeros(visual.shape[0], dtype=torch.long)
    if positions is None or positions.dim() < 2 or positions.shape[-1] != visual.shape[1]:
        return none
    at = positions.to(visual.device).view(-1, *positions.shape[-2:]).expand(-1, len(visual), -1)
    present = torch.ones_like(visual) if real is None else real
    begin = present.long().argmax(dim=1)[None, :, None].expand(len(at), -1, 1)
    back = (at <= at.gather(2, begin)).all(dim=0) & present
    return (back.sum(1) - 1).clamp(min=0)


def _apart(mask: Any, visual: Tensor) -> Tensor:
    """(b,) how many visual tokens the last token of a row does not see, by a mask of four axes."""
    length = visual.shape[1]
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-2] != length:
        return visual.new_zeros(visual.shape[0], dtype=torch.long)
    given = mask[:, 0, :, -length:].to(visual.device)
    sees = (given > -1 if given.is_floating_point() else given.bool()).expand(len(visual), -1, -1)
    real = sees.diagonal(dim1=1, dim2=2)
    position = torch.arange(length, device=visual.device)
    last = torch.where(real, position, 0).amax(dim=1)
    return (visual & real & ~sees[torch.arange(len(visual)), last]).sum(1)


def _runs(kind: Tensor, names: tuple[str, ...], of_kind: list[list[int]]) -> list[Runs]:
    """Per sample, the runs of its visual tokens; the order is looked up where kinds are mixed."""
    if sum(any(row) for row in of_kind) <= 1:
        return [
            [(name, n) for name, n in zip(names, column, strict=True) if n]
            for column in zip(*of_kind, strict=True)
        ]
    return [
        [(names[number - 1], len(list(same))) for number, same in groupby(filter(None, row))]
        for row in kind.tolist()
    ]


def _stretches(visual: Tensor) -> list[list[int]]:
    """Per sample, how many visual tokens follow each other (sync: once per prompt)."""
    return [[sum(same) for yes, same in groupby(row) if yes] for row in visual.tolist()]


def _asking(seq: Sequence, asks: Tensor | None, most: int, drafts: int) -> tuple[Tensor, Tensor]:
    """(b, r) asking tokens: before every answer in training, else the last real token."""
    position = torch.arange(seq.length, device=seq.device).expand(seq.batch, -1)
    real = position >= 0 if seq.real is None else seq.real
    end = torch.where(real, position, -1).amax(dim=1, keepdim=True)
    # padding may follow the answers as well as precede them: drafts are the last positions
    before = torch.where(real & (position < seq.length - drafts), position, -1)
    last = before.amax(dim=1, keepdim=True)
    shown = position if seq.visual is None else torch.where(seq.visual, position, -1)
    # logits are wanted from before the pictures on: that tells of no answer behind them
    last = torch.where(last < shown.amax(dim=1, keepdim=True), end, last).clamp(min=0)
    if asks is None or not most:
        return last, torch.ones_like(last, dtype=torch.bool)
    index = torch.where(asks, position, seq.length).sort(dim=1).values[:, :most]
    valid = index < seq.length
    index = torch.where(valid, index, last)
    valid[:, 0] = True  # a sample without an answer asks with its last token
    return index, valid
