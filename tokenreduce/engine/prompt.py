"""What a forward pass says about its tokens: which are visual, real, queries; read once per prompt.

Shapes: b samples, l sequence, r query tokens.
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
from tokenreduce.geometry import Picture, Runs, assign, places
from tokenreduce.tokens import Places


@dataclass(frozen=True)
class Prompt:
    """What is known of the tokens of a pass that has visual ones.

    Attributes:
        visual: (b, l) True at visual tokens.
        real: (b, l) False at padding; None when there is none.
        query_index: (b, r) the query tokens, whose attention scores the visual ones, and
            `query_valid` (b, r), False where a sample has fewer.
        before_answer: (b, l) False from the sample's first answer on, which no choice may depend
            on; None without labels.
        counts: visual tokens per sample (host).
        places: where the visual tokens lie; `pictures` the same per sample, on the host.
        separators: the largest number of separator tokens in a sample (host).
        restarts: whether the positions of a row fall, as those of packed prompts do (host).
        text_first: whether every sample begins with a real text token (host).
    """

    visual: Tensor
    real: Tensor | None
    query_index: Tensor
    query_valid: Tensor
    before_answer: Tensor | None
    counts: tuple[int, ...]
    places: Places
    pictures: list[list[Picture]]
    separators: int
    restarts: bool
    text_first: bool


def merged_kinds(call: ModelCall) -> set[str]:
    """The kinds of pictures whose features this pass puts into the text.

    Only their placeholder ids are visual: a generated placeholder id is text like any other.
    """
    encoded = {str(kind) for kind, value in call.encoded.items() if value is not None}
    return encoded | {VIDEO if "video" in name else IMAGE for name in call.raw}


Assemble = Callable[[list[Picture], list[int] | None, list[bool]], list[Picture]]


@dataclass
class PictureQueue:
    """The pictures of the latest encoder calls by kind; `consumed` counts tokens already placed.

    Where the encoder is given parts of pictures, `assemble` makes those of a sample whole.
    """

    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    consumed: dict[str, int] = field(default_factory=dict)
    assemble: Assemble | None = None

    def put(self, kind: str, pictures: list[Picture]) -> None:
        """Takes in what an encoder call was about; nothing of it has had its turn."""
        if self.pictures.get(kind) is not pictures:
            self.pictures[kind], self.consumed[kind] = pictures, 0


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

    Beams repeat every row; tokens after the mask (generated ones) are text.
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
    """What a call has told of its tokens, besides which of them are visual.

    Attributes:
        real: (b, l) False at padding; None when there is none.
        labels: (b, l) or None; every token right before an answer is a query token.
        drafts: without labels the query token is the last real one before so many last positions,
            where that is after the pictures; else the last real one.
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


def lengths(batch: int, length: int, real: Tensor | None) -> tuple[int, ...]:
    """Real tokens per sample of a pass without visual tokens (sync: once per prompt)."""
    if real is None:
        return (length,) * batch
    return tuple(real.bool().sum(1).tolist())


def read_prompt(
    kind: Tensor, names: tuple[str, ...], given: Given, queue: PictureQueue
) -> tuple[Prompt | None, tuple[int, ...]]:
    """What is known of a pass with visual tokens, and its other real tokens per sample.

    Args:
        kind: (b, l) 0 for text, else the number of a kind of picture in `names`, counted from 1.
        names: the kinds of pictures.
        given: what else the call has told.
        queue: the pictures that the encoders were given.

    Returns:
        The prompt, None where no token is visual after all; and the counts.
    """
    real = None if given.real is None else given.real.to(kind.device, torch.bool)
    if real is not None:
        kind = kind * real
    visual, length = kind > 0, kind.shape[1]
    starts, before_answer = _answers(given.labels, visual, real)
    # sync: once per prompt, so that every later count is known on the host
    host = torch.stack(_to_count(kind, names, given, real, starts)).tolist()
    counts, present, answers, first, restarts, *of_kind = host
    texts = tuple(n - v for n, v in zip(present, counts, strict=True))
    if not any(counts):
        return None, texts
    real = None if real is None or all(n == length for n in present) else real
    pictures = _pictures(kind, names, of_kind, queue, given.ids)
    prompt = Prompt(
        visual,
        real,
        *_queries(real, visual, starts if max(answers) else None, max(answers), given.drafts),
        before_answer,
        tuple(counts),
        places(pictures, kind.device),
        pictures,
        max((sum(int(p.separator.sum()) for p in row) for row in pictures), default=0),
        any(restarts),
        all(first),
    )
    return prompt, texts


def _answers(
    labels: Tensor | None, visual: Tensor, real: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(b, l) True at every token right before an answer, and before the first; None unlabelled."""
    if labels is None or labels.shape != visual.shape:
        return None, None
    labels = labels.to(visual.device)
    starts = before_answers(labels)
    starts = starts if real is None else starts & real
    return starts, (labels != -100).cumsum(dim=1) == 0


def _to_count(
    kind: Tensor,
    names: tuple[str, ...],
    given: Given,
    real: Tensor | None,
    starts: Tensor | None,
) -> list[Tensor]:
    """What the host has to know, (b,) whole numbers each: one copy fetches them all."""
    visual = kind > 0
    counts = visual.sum(1)
    text = ~visual[:, 0] if real is None else ~visual[:, 0] & real[:, 0]
    return [
        counts,
        counts.new_full(counts.shape, kind.shape[1]) if real is None else real.sum(1),
        counts.new_zeros(counts.shape) if starts is None else starts.sum(1),
        text.to(counts.dtype),
        _restarts(given.positions, real, visual) + _apart(given.mask, visual),
        *((kind == number).sum(1) for number in range(1, len(names) + 1)),
    ]


def _pictures(
    kind: Tensor,
    names: tuple[str, ...],
    of_kind: list[list[int]],
    queue: PictureQueue,
    ids: Tensor | None,
) -> list[list[Picture]]:
    """Per sample, the pictures that its visual tokens stand for, of unknown shape where unknown."""
    found = assign(queue.pictures, _runs(kind, names, of_kind), queue.consumed)
    for name, number in zip(names, map(sum, of_kind), strict=True):
        queue.consumed[name] = queue.consumed.get(name, 0) + number
    if found is None:
        return [[Picture.unknown(n)] if n else [] for n in map(sum, zip(*of_kind, strict=True))]
    if queue.assemble is None:
        return found
    # sync: once per prompt of a family whose pictures come in parts
    shown, text = (kind > 0).tolist(), [None] * len(kind) if ids is None else ids.tolist()
    return [queue.assemble(*row) for row in zip(found, text, shown, strict=True)]


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


def _queries(
    real: Tensor | None, visual: Tensor, starts: Tensor | None, most: int, drafts: int
) -> tuple[Tensor, Tensor]:
    """(b, r) the query tokens: before every answer in training, else the last real token."""
    length = visual.shape[1]
    position = torch.arange(length, device=visual.device).expand(len(visual), -1)
    present = position if real is None else torch.where(real, position, -1)
    end = present.amax(dim=1, keepdim=True)
    # padding may follow the answers as well as precede them: drafts are the last positions
    last = torch.where(position < length - drafts, present, -1).amax(dim=1, keepdim=True)
    shown = torch.where(visual, position, -1).amax(dim=1, keepdim=True)
    # logits are wanted from before the pictures on: that tells of no answer after them
    last = torch.where(last < shown, end, last).clamp(min=0)
    if starts is None:
        return last, torch.ones_like(last, dtype=torch.bool)
    index = torch.where(starts, position, length).sort(dim=1).values[:, :most]
    valid = index < length
    index = torch.where(valid, index, last)
    valid[:, 0] = True  # a sample without an answer asks with its last token
    return index, valid
