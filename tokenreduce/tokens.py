"""What a strategy is given (`Tokens`) and what it gives back (`Plan`).

Shapes: b samples, v visual tokens (padded to the longest sample), k kept, d width, h heads,
l sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tokenreduce.errors import BadOption, Incompatible, UnknownName, read_moved, warn_once

SPAN = 1 << 16
"""The width and the height of a picture, in the units of `Places.x` and `Places.y`."""


@dataclass(frozen=True)
class Places:
    """Where visual tokens lie in their pictures. Every field is (b, v).

    `row` and `column` count within a tile, `tile` within a frame, `frame` within a picture (0 but
    for videos), `image` numbers the pictures of a sample; `line` numbers the rows of a sample (one
    number for each image, frame, tile and row) from 0. `separator` marks tokens that end a row and
    carry no picture (LLaVA-NeXT's newline). `x` and `y` are a token's centre in its picture, in
    `SPAN`ths of its width and height; -1 where not known.
    """

    image: Tensor
    frame: Tensor
    tile: Tensor
    row: Tensor
    column: Tensor
    line: Tensor
    separator: Tensor
    x: Tensor
    y: Tensor

    @staticmethod
    def unknown(shape: Tensor) -> Places:
        """Nothing known of where the tokens of `shape` (b, v) lie: one row of one picture."""
        zero = torch.zeros_like(shape, dtype=torch.long)
        return Places(zero, zero, zero, zero, zero, zero, zero.bool(), zero - 1, zero - 1)

    def gather(self, index: Tensor) -> Places:
        """The places of the tokens at `index` (b, k)."""
        return Places(*(getattr(self, name).gather(1, index) for name in PLACES))

    @property
    def grid(self) -> Tensor:
        """(b, v) one number for image, frame and tile; it changes where one of them does."""
        return (self.image * (1 << 20) + self.frame) * (1 << 20) + self.tile


PLACES = tuple(one.name for one in fields(Places))


@dataclass(frozen=True)
class Tokens:
    """The visual tokens of a batch at one stop, and the evidence on them.

    Attributes:
        hidden: (b, v, d) hidden states at the input of `layer`, in reading order.
        valid: (b, v) False where a sample has fewer tokens than the longest one.
        origin: (b, v) index among the sample's own visual tokens, counted at layer 0.
        places: where each token lies in its picture.
        counts: valid tokens per sample, known on the host.
        original: the largest number of visual tokens that a sample had at layer 0 (host).
        layer: the decoder layer at whose input the tokens are reduced.
        seed: the reduction's seed; equal for every sample, whatever its batch mates.
        separators: the largest number of separator tokens in a sample at layer 0 (host).
        fixed: how many tokens in front stay alone and never leave (a tower's class tokens).
        size: (b, v) how many patches each token represents; None where each is one.
        ordered: False where a plan's `keep` may be in any order (a tower, whose attention knows no
            order, and where the order of earlier plans is what the method goes on from).
        learning: whether gradients are wanted here: then a plan may have a gate.
        evidence: named measurements, computed when first read: `tokens["attention"]`.
    """

    hidden: Tensor
    valid: Tensor
    origin: Tensor
    places: Places
    counts: tuple[int, ...]
    original: int
    layer: int = 0
    seed: int = 0
    separators: int = 0
    fixed: int = 0
    size: Tensor | None = None
    ordered: bool = True
    learning: bool = False
    evidence: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)

    @property
    def separated(self) -> bool:
        """Whether any token is a separator; known on the host."""
        return self.separators > 0

    def __getitem__(self, name: str) -> Tensor:
        try:
            compute = self.evidence[name]
        except KeyError:
            known = ", ".join(self.evidence) or "none"
            raise UnknownName(
                f"no evidence {name!r} here (at hand: {known}); "
                "a strategy names what it reads in `needs`"
            ) from None
        return compute()


How = Literal["mean", "max", "sum"]


@dataclass(frozen=True)
class Merge:
    """Kept tokens that contain their groups.

    Attributes:
        group: (b, v) the slot (0..k-1) into which each token is merged, -1 where it is dropped.
        weight: (b, v) share of each token in its group's mean or sum; None means equal shares.
        how: what a group becomes, the weighted `"mean"` or `"sum"`, or the elementwise `"max"`.
    """

    group: Tensor
    weight: Tensor | None = None
    how: How = "mean"

    def into(self, x: Tensor, keep: Tensor) -> Tensor:
        """(b, v, d) -> (b, k, d); a slot without a group is the token there, `keep` (b, k)."""
        (b, k), d = keep.shape, x.shape[-1]
        slot = torch.where(self.group < 0, k, self.group)
        weight = torch.ones_like(slot, dtype=x.dtype) if self.weight is None else self.weight
        weight = weight.to(x.dtype).masked_fill(slot == k, 0)
        index = slot[..., None].expand(*slot.shape, d)
        if self.how == "max":
            low = x.new_full((b, k + 1, d), float("-inf"))
            merged = low.scatter_reduce(1, index, x, "amax")[:, :k]
            return torch.where(merged.isinf(), gather(x, keep), merged)
        if self.how == "sum":
            wide = torch.promote_types(x.dtype, torch.float32)  # groups may be large
            terms = x.to(wide) * weight[..., None].to(wide)
            return terms.new_zeros(b, k + 1, d).scatter_add(1, index, terms)[:, :k].to(x)
        total = x.new_zeros(b, k + 1, d).scatter_add(1, index, x * weight[..., None])
        share = weight.new_zeros(b, k + 1).scatter_add(1, slot, weight)
        mean = total[:, :k] / share[:, :k, None].clamp(min=torch.finfo(x.dtype).tiny)
        return torch.where(share[:, :k, None] > 0, mean, gather(x, keep))


@dataclass(frozen=True)
class Mix:
    """Kept tokens that contain shares of any tokens, where a token goes to several slots.

    Attributes:
        share: (b, k, v) how much of every token each slot contains.
    """

    share: Tensor

    def into(self, x: Tensor, keep: Tensor) -> Tensor:
        """(b, v, d) -> (b, k, d)."""
        return self.share.to(x.dtype) @ x


@dataclass(frozen=True)
class Gate:
    """How much of each kept token is let through, for learned choices.

    Attributes:
        value: (b, k) of value one, or in (0, 1], with the gradient of a score.
        fallback: (b, v) mixing weights of the tokens, used where the gate is 0; None: zeros.
    """

    value: Tensor
    fallback: Tensor | None = None

    def through(self, merged: Tensor, x: Tensor) -> Tensor:
        """(b, k, d) what is let through of kept tokens, made of `x` (b, v, d)."""
        value = self.value.to(x.dtype)[..., None]
        if self.fallback is None:
            return merged * value
        # of value 1 the gate changes no bit: x * 1 + 0 * finite
        return merged * value + (1 - value) * (self.fallback.to(x.dtype)[:, None] @ x)


@dataclass(frozen=True, init=False)
class Plan:
    """Which tokens stay, and what the kept ones contain. Data: comparable, storable, drawable.

    Attributes:
        keep: (b, k) indices into the tokens of the stop, ascending along k where `valid` (unless
            the tokens are not `ordered`).
        valid: (b, k) False for filler; None when every entry counts.
        content: what kept tokens contain, a `Merge` or a `Mix`; None where they stay as they are.
        gate: how much of each kept token is let through; None lets everything through.
        score: (b, v) what the tokens were ranked by, higher is kept, for pictures of the choice.
            Nothing is computed from it. None where a method ranks nothing.
    """

    keep: Tensor
    valid: Tensor | None = None
    content: Merge | Mix | None = None
    gate: Gate | None = None
    score: Tensor | None = None

    def __init__(
        self,
        keep: Tensor,
        valid: Tensor | None = None,
        content: Merge | Mix | None = None,
        gate: Gate | None = None,
        score: Tensor | None = None,
        **earlier: Any,
    ) -> None:
        """The attributes; `earlier` are names of version 0.1, which are deprecated.

        Raises:
            TypeError: another name.
        """
        if earlier or isinstance(content, Tensor) or isinstance(gate, Tensor):
            content, gate = _translated(content, gate, earlier)
        for name, value in zip(PLAN, (keep, valid, content, gate, score), strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        mask: Tensor,
        tokens: Tokens,
        budget: Sequence[int],
        *,
        content: Merge | Mix | None = None,
        score: Tensor | None = None,
    ) -> Plan:
        """The plan that keeps the tokens of a mask, in reading order.

        Args:
            mask: (b, v) True at the kept tokens; padding is left out.
            tokens: of the stop.
            budget: how many of each sample are kept, at most all: exactly as many as `mask` has.
            content: what the kept tokens contain.
            score: (b, v) what the tokens were ranked by.
        """
        counts = [min(k, n) for k, n in zip(budget, tokens.counts, strict=True)]
        keep, valid = keep_from_mask(mask & tokens.valid, max(counts, default=0))
        even = len(set(counts)) <= 1
        score = None if score is None else score.detach()
        return cls(keep, None if even else valid, content, None, score)

    @classmethod
    def everything(cls, valid: Tensor) -> Plan:
        """The plan that keeps every token; `valid` (b, v) is False where a sample has fewer."""
        return cls(torch.arange(valid.shape[1], device=valid.device).expand_as(valid), valid)

    @property
    def merges(self) -> bool:
        """Whether kept tokens contain others."""
        return self.content is not None

    @property
    def changes(self) -> bool:
        """Whether kept tokens contain anything but what they did."""
        return self.merges or self.gate is not None

    @property
    def group(self) -> Tensor | None:
        """(b, v) the slot of each token, -1 where it is dropped; None without a `Merge`."""
        return self.content.group if isinstance(self.content, Merge) else None

    @property
    def mix(self) -> Tensor | None:
        """(b, k, v) how much of every token each slot contains; None without a `Mix`."""
        return self.content.share if isinstance(self.content, Mix) else None

    def counts(self) -> Tensor:
        """(b,) kept tokens per sample."""
        if self.valid is None:
            return self.keep.new_full((self.keep.shape[0],), self.keep.shape[1])
        return self.valid.sum(dim=1)

    def take(self, x: Tensor) -> Tensor:
        """(b, v, ...) -> (b, k, ...): what belongs to the kept tokens (positions, masks)."""
        return gather(x, self.keep)

    def merge(self, x: Tensor) -> Tensor:
        """(b, v, d) -> (b, k, d): what the kept tokens contain (hidden states)."""
        merged = self.take(x) if self.content is None else self.content.into(x, self.keep)
        return merged if self.gate is None else self.gate.through(merged, x)

    def unmerge(self, x: Tensor) -> Tensor:
        """(b, k, ...) -> (b, v, ...): what every token's group contains, zero if dropped."""
        if self.group is None:
            raise BadOption("only a plan with groups says of every token where it went")
        gone = (self.group < 0).view(*self.group.shape, *[1] * (x.dim() - 2))
        return gather(x, self.group.clamp(min=0)).masked_fill(gone, 0)

    def detach(self) -> Plan:
        """The same plan as mere data, without what gradients need."""
        plain: Plan = on_tensors(self, lambda t: t.detach() if t.requires_grad else t)
        return plain


PLAN = tuple(one.name for one in fields(Plan))

EARLIER = ("group", "weight", "how", "mix", "ground")
"""Fields of a plan of version 0.1, now parts of its `content` and `gate`."""


def _translated(content: Any, gate: Any, earlier: dict[str, Any]) -> tuple[Any, Any]:
    """Content and gate of a plan that is written as in version 0.1."""
    unknown = set(earlier) - set(EARLIER)
    if unknown:
        raise Incompatible(f"Plan has no {min(unknown)!r} (known: {', '.join(PLAN)})")
    if isinstance(content, Tensor):  # the groups, by position
        earlier = {"group": content, **earlier}
        content = None
    warn_once(
        f"Plan({', '.join(sorted(earlier) or ['gate'])}=...) is written "
        "Plan(content=Merge(group, weight, how)), Plan(content=Mix(share)) and "
        "Plan(gate=Gate(value, fallback)) from version 0.2 on"
    )
    if earlier.get("mix") is not None:
        content = Mix(earlier["mix"])
    elif earlier.get("group") is not None:
        content = Merge(earlier["group"], earlier.get("weight"), earlier.get("how", "mean"))
    if isinstance(gate, Tensor):
        gate = Gate(gate, earlier.get("ground"))
    return content, gate


def on_tensors(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` of a tensor; a tuple or a record with that of all in it; itself where all stay."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, tuple):
        parts = tuple(on_tensors(part, change) for part in x)
        return x if all(a is b for a, b in zip(x, parts, strict=True)) else parts
    if not is_dataclass(x) or isinstance(x, type):
        return x
    changed = {one.name: on_tensors(getattr(x, one.name), change) for one in fields(x)}
    same = all(value is getattr(x, name) for name, value in changed.items())
    return x if same else replace(x, **changed)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """(b, v, ...) and (b, k) -> (b, k, ...), the entries of `x` at `index`."""
    tail = x.shape[2:]
    at = index.view(*index.shape, *[1] * len(tail)).expand(*index.shape, *tail)
    return x.gather(1, at)


def keep_from_mask(mask: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ascending indices of the True entries of `mask` (b, v), as (b, k) index and validity.

    `k` is the largest number of True entries in a row, known to the caller: no host sync.
    """
    v = mask.shape[1]
    position = torch.arange(v, device=mask.device).expand_as(mask)
    index = torch.where(mask, position, v).sort(dim=1).values[:, :k]
    valid = index < v
    return index.masked_fill(~valid, 0), valid


def __getattr__(name: str) -> Any:
    moved = {each: f"tokenreduce.evidence.{each}" for each in ("EVIDENCE", "DECODER", "TOWER")}
    return read_moved(__name__, name, moved)
