"""What a reduction did to the latest prompt, in numbers.

Shapes: b samples, k kept tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenreduce.cost import DecoderShape, cost_of, kv_bytes, macs
from tokenreduce.geometry import Picture
from tokenreduce.scheduler import Stop
from tokenreduce.tokens import Plan

CONVENTION = "matmul"
MANY = 4  # samples that a short form lists


@dataclass
class Record:
    """What is remembered of a prompt: host counts at once, tensors until they are read.

    A prompt that comes in chunks, or that adds to a cache, has one part per forward pass.
    """

    counts: tuple[int, ...]
    texts: tuple[int, ...]
    budgets: dict[int, tuple[int, ...]]
    kept: dict[int, tuple[Tensor, Tensor]]
    plans: dict[int, Plan]
    pictures: list[list[Picture]]
    cache: Any = None
    spared: tuple[int, ...] = ()
    stops: Mapping[int, Stop] = field(default_factory=dict)  # under which the prompt has run

    def of(self, cache: Any) -> bool:
        """Whether this record is about what `cache` holds."""
        return self.cache is not None and self.cache() is cache

    def in_use(self) -> bool:
        """Whether it is about pictures whose cache is still in use."""
        return any(self.counts) and self.cache is not None and self.cache() is not None

    def join(self, later: Record) -> Record:
        """This record with a later part of the same prompt."""

        def add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        kept, budgets = dict(self.kept), dict(self.budgets)
        for layer, (index, valid) in later.kept.items():
            start = index.new_tensor(self.counts)[:, None]
            here = (index + start, valid)
            kept[layer] = _beside(self.kept[layer], here) if layer in self.kept else here
            budgets[layer] = add(self.budgets.get(layer, (0,) * len(start)), later.budgets[layer])
        return Record(
            add(self.counts, later.counts),
            add(self.texts, later.texts),
            budgets,
            kept,
            later.plans or self.plans,
            [a + b for a, b in zip(self.pictures, later.pictures, strict=True)],
            later.cache,
            add(self.spared, later.spared),
            {**self.stops, **later.stops},
        )

    def indices(self) -> dict[int, list[Tensor]]:
        """Kept indices per stop and sample, ascending, among the sample's own visual tokens."""
        return {
            layer: [row[ok] for row, ok in zip(index, valid, strict=True)]
            for layer, (index, valid) in self.kept.items()
        }


def _beside(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]], dim=1), torch.cat([a[1], b[1]], dim=1)


@dataclass(frozen=True, repr=False)
class EncoderReport:
    """Tokens of the latest pass, per picture; class tokens are counted.

    Attributes:
        pictures: rows of the batch; 1 where a tower packs all pictures into one sequence.
        tokens: that the encoder begins with.
        tokens_per_layer: after each layer.
        flops, flops_full: of the layers, all pictures, with and without the reduction.
        applied: whether tokens were merged.
        blocks: of a packed sequence: pictures, frames or windows, which are kept apart.
    """

    pictures: int
    tokens: int
    tokens_per_layer: list[int]
    flops: int
    flops_full: int
    applied: bool
    blocks: int | None = None
    convention: str = (
        "matmul FLOPs (2 per multiply-add) of the layers, full attention square of what sees itself"
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        left = " ".join(str(n) for n in self.tokens_per_layer)
        share = self.flops / self.flops_full if self.flops_full else 1.0
        where = "the picture" if self.pictures == 1 else f"each of {self.pictures} pictures"
        if self.blocks is not None:
            where = f"one sequence of {self.blocks} blocks"
        return (
            f"tokens            {self.tokens} in {where}\n"
            f"after each layer  {left}\n"
            f"FLOPs             {self.flops:.4g} of {self.flops_full:.4g} ({share:.1%})"
        )

    def __repr__(self) -> str:
        left = self.tokens_per_layer[-1] if self.tokens_per_layer else self.tokens
        return f"<EncoderReport: {self.tokens} -> {left} tokens, FLOPs {_left(self, 'flops')}>"


@dataclass(frozen=True, repr=False)
class Report:
    """Tokens, FLOPs and cache bytes of the latest prompt, with and without the reduction.

    Attributes:
        visual_tokens: per sample.
        text_tokens: per sample, without padding; no layer drops any.
        stops: one entry per stop: `layer`, `keep` (share of the original), `kept` (per sample) and
            where `at_least` has raised a share, `raised` (per sample).
        tokens_per_layer: per layer, per sample: text and visual tokens without padding.
        flops, flops_full: of the decoder layers in prefill, all samples.
        convention: how FLOPs are counted (`tokenreduce.cost`).
        kv_bytes, kv_bytes_full: keys and values of the prompt, all layers and samples.
        applied: per sample, whether tokens were dropped.
        selection_flops: what choosing adds, at most: a score by the attention that one token pays
            to all (`tokenreduce.cost.selection_macs`), or 0 for methods that measure nothing; None
            for other evidence, which no formula describes.
        skipped: per sample, why none were although a reduction was given; None where they were, or
            where there are none.
        tower: of the latest pass through the vision tower, where it merges tokens.
    """

    visual_tokens: list[int]
    text_tokens: list[int]
    stops: list[dict[str, Any]]
    tokens_per_layer: list[list[int]]
    flops: int
    flops_full: int
    kv_bytes: int
    kv_bytes_full: int
    applied: list[bool]
    skipped: list[str | None] = field(default_factory=list)
    selection_flops: int | None = None
    convention: str = field(
        default="matmul FLOPs (2 per multiply-add) of the decoder layers, full attention square"
    )
    tower: EncoderReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"visual tokens     {_row(self.visual_tokens)}"]
        lines += [
            f"layer {stop['layer']:<3} keeps   {_row(stop['kept'])}  ({_share(stop)})"
            for stop in self.stops
        ]
        lines += [f"sample {i:<3} as is     {why}" for i, why in enumerate(self.skipped) if why]
        lines.append(
            f"prefill FLOPs     {self.flops:.4g} of {self.flops_full:.4g} ({_left(self, 'flops')})"
        )
        if self.selection_flops:
            lines.append(f"selection FLOPs   up to {self.selection_flops:.4g} more")
        if self.tower is not None:
            left = " ".join(str(n) for n in self.tower.tokens_per_layer)
            lines.append(f"vision tower      {self.tower.tokens} tokens, after each layer {left}")
        lines.append(
            f"KV cache          {self.kv_bytes:,} of {self.kv_bytes_full:,} bytes "
            f"({_left(self, 'kv_bytes')})"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = [self.visual_tokens, *(stop["kept"] for stop in self.stops)]
        visual = " -> ".join(_row(list(row)) for row in counts)
        if len(self.visual_tokens) > MANY:
            visual = f"{len(self.visual_tokens)} samples"
        return (
            f"<Report: visual tokens {visual}, prefill FLOPs {_left(self, 'flops')}, KV cache "
            f"{_left(self, 'kv_bytes')}; print() shows all>"
        )


def _left(report: Report | EncoderReport, name: str) -> str:
    """What is left of a cost, as a percentage of the unreduced one."""
    full = getattr(report, f"{name}_full")
    return f"{getattr(report, name) / full if full else 1.0:.1%}"


def _share(stop: dict[str, Any]) -> str:
    pairs = zip(stop["kept"], stop.get("raised", ()), strict=False)
    raised = [k for k, more in pairs if more]
    return f"{stop['keep']:.4g} of all" + (f", at least {min(raised)}" if raised else "")


def _row(values: list[int]) -> str:
    return " ".join(str(v) for v in values)


def make_report(
    record: Record,
    stops: Mapping[int, Stop],
    shape: DecoderShape,
    bytes_per_value: int,
    min_tokens: int = 0,
    needs: frozenset[str] | None = None,
) -> Report:
    """The numbers of a record, for a decoder of the given shape.

    `needs` is the evidence that the strategy reads; None where that is not known.
    """
    visual, layers = record.counts, []
    spared = record.spared or (0,) * len(record.counts)
    for i in range(shape.layers):
        visual = record.budgets.get(i, visual)
        layers.append([text + v for text, v in zip(record.texts, visual, strict=True)])
    full = [text + v for text, v in zip(record.texts, record.counts, strict=True)]
    samples = list(zip(*layers, strict=True))
    return Report(
        visual_tokens=list(record.counts),
        text_tokens=list(record.texts),
        stops=[
            {
                "layer": i,
                "keep": stops[i].keep,
                "kept": list(kept),
                **_raised(stops[i], record.counts, kept),
            }
            for i, kept in sorted(record.budgets.items())
        ],
        tokens_per_layer=layers,
        flops=2 * sum(macs(shape, tokens, CONVENTION) for tokens in samples),
        flops_full=2 * sum(macs(shape, [n] * shape.layers, CONVENTION) for n in full),
        kv_bytes=round(sum(kv_bytes(shape, tokens, bytes_per_value) for tokens in samples)),
        kv_bytes_full=round(
            sum(kv_bytes(shape, [n] * shape.layers, bytes_per_value) for n in full)
        ),
        applied=[now < before for now, before in zip(visual, record.counts, strict=True)],
        skipped=[
            _reason(left, n, min_tokens) for left, n in zip(spared, record.counts, strict=True)
        ],
        selection_flops=_choosing(shape, full, samples, needs),
    )


def _raised(stop: Stop, counts: tuple[int, ...], kept: tuple[int, ...]) -> dict[str, Any]:
    """Per sample, whether more tokens stay than the rounded share; nothing where none has more."""
    pairs = zip(counts, kept, strict=True)
    raised = [stop.rounded(n) < k <= stop.floor and k < n for n, k in pairs]
    return {"raised": raised} if any(raised) else {}


def _choosing(
    shape: DecoderShape,
    full: list[int],
    samples: list[tuple[int, ...]],
    needs: frozenset[str] | None,
) -> int | None:
    """FLOPs of the choices of tokens, at most; None for evidence that no formula describes."""
    if needs is None or needs - {"attention", "grid"}:
        return None
    if "attention" not in needs:
        return 0
    both = zip(full, samples, strict=True)
    return 2 * sum(cost_of(shape, tokens, n).selection_macs for n, tokens in both)


def _reason(left: int, n: int, min_tokens: int) -> str | None:
    """Why `left` of a sample's `n` visual tokens had no reduction."""
    if not left:
        return None
    if left == n:
        return f"{n} visual tokens are fewer than min_tokens={min_tokens}"
    return f"{left} of {n} visual tokens came in parts of fewer than min_tokens={min_tokens}"
