"""Smaller pictures: the null reducer that acts before a model's processor.

It makes a picture so small that the model is given about the wanted share of its visual tokens.
That works where the number of tokens follows the size of the picture. A processor that makes the
same number of every picture is refused: at equal cost its tokens can be pooled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenreduce.checks import share
from tokenreduce.data.images import in_rgb
from tokenreduce.errors import BadOption
from tokenreduce.report import Report

LEAST = 8
"""Pixels of the shorter side of the smallest picture that is tried."""
FINE = 32
"""Steps around the best of the half powers of two of the area, which are tried first.

These go far down: a processor may itself make a large picture smaller, so that only one below its
limit has fewer tokens.
"""
OFF = 0.2
"""A share of the wanted number; a larger miss is reported."""


@dataclass(frozen=True)
class Downsampled:
    """Pictures made smaller, and what the processor makes of them.

    Attributes:
        images: PIL pictures in RGB; those that need no change are the caller's own.
        tokens: visual tokens of each.
        full: visual tokens of each picture as it was.
    """

    images: list[Any]
    tokens: list[int]
    full: list[int]


def downsample(processor: Any, images: Sequence[Any], keep: float = 0.25) -> Downsampled:
    """Makes pictures so small that a model gets about the share `keep` of their visual tokens.

    The aspect ratio stays. How many tokens a picture has is what the processor itself says, so
    that it holds for every family; which numbers there are is up to the family (a grid of whole
    patches, or of whole tiles), and the nearest one is taken.

    Args:
        processor: the checkpoint's, with its tokenizer.
        images: PIL pictures.
        keep: above 0.

    Raises:
        ValueError: a share outside 0 to 1, a picture of 32-bit numbers, or a processor that makes
            as many tokens of every size.
    """
    if not share(keep, "keep"):
        raise BadOption("keep must be above 0: no picture has no tokens")
    plain = [image if image.mode == "RGB" else in_rgb(image) for image in images]
    found = [_smaller(lambda x: visual_tokens(processor, x), image, keep) for image in plain]
    short, full = sum(n for _, n, _ in found), sum(n for _, _, n in found)
    if keep < 1 and short >= full > 0:
        raise BadOption(
            f"{type(processor).__name__} makes {full} visual tokens of these pictures at every "
            "size that was tried, so that smaller ones save nothing: pool their tokens instead "
            "(strategy 'pooling'), which costs as much as a smaller picture would"
        )
    if abs(short - keep * full) > OFF * keep * full:
        warnings.warn(
            f"{type(processor).__name__} has no size of these pictures with about {keep:.4g} of "
            f"their {full} visual tokens; the nearest one has {short} ({short / full:.4g})",
            stacklevel=2,
        )
    return Downsampled(*(list(column) for column in zip(*found, strict=True)))


def visual_tokens(processor: Any, image: Any) -> int:
    """How many visual tokens a processor makes of one picture."""
    token = processor.image_token
    number = getattr(processor, "image_token_id", None)
    if number is None:
        number = processor.tokenizer.convert_tokens_to_ids(token)
    # Gemma 3 writes another token in a prompt than the one that stands for the picture's tokens
    mark = getattr(processor, "boi_token", None) if "gemma" in _kind(processor) else None
    inputs = processor(images=[image], text=mark or token, return_tensors="pt")
    return int((inputs["input_ids"] == number).sum())


def shrunk(small: Report, full: Report) -> Report:
    """The report on a prompt of smaller pictures, and that on the same prompt with full ones."""
    counts, before = small.visual_tokens, full.visual_tokens
    stop = {"layer": 0, "keep": sum(counts) / max(sum(before), 1), "kept": counts}
    return replace(
        small,
        visual_tokens=before,
        stops=[stop],
        flops_full=full.flops_full,
        kv_bytes_full=full.kv_bytes_full,
        applied=[n < whole for n, whole in zip(counts, before, strict=True)],
    )


def _smaller(count: Callable[[Any], int], image: Any, keep: float) -> tuple[Any, int, int]:
    """The picture of the nearest number of tokens, that number, and what it was.

    Where several are as near, the largest picture; tokens mostly grow with the area, but tiles
    make steps, up and down.
    """
    full = count(image)
    goal, tried = max(round(full * keep), 1), {0.0: (image, full)}

    def miss(halvings: float) -> tuple[int, float]:
        if halvings not in tried:
            small = _scaled(image, 2.0**-halvings)
            tried[halvings] = (small, count(small))
        return abs(tried[halvings][1] - goal), halvings

    if full > goal:
        most = max(2 * math.log2(min(image.size) / LEAST), 0.0)
        best = min((i / 2 for i in range(int(2 * most) + 1)), key=miss)
        near = (best + i / FINE for i in range(-FINE // 2, FINE // 2 + 1))
        best = min((x for x in near if 0 <= x <= most), key=miss)
    else:
        best = 0.0
    return (*tried[best], full)


def _scaled(image: Any, area: float) -> Any:
    size = tuple(max(round(side * area**0.5), 1) for side in image.size)
    return image if size == image.size else image.resize(size, resample=3)  # bicubic


def _kind(processor: Any) -> str:
    return type(processor).__name__.lower()
