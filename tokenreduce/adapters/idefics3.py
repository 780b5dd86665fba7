"""Idefics3 and SmolVLM (transformers `Idefics3…` and `SmolVLMForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, ClassVar

import torch

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture, moved
from tokenreduce.tower import Part, Tower


@adapters.register("idefics3")
class Idefics3(Adapter):
    """Idefics3: an image is a grid of square tiles, row by row, and then the whole image.

    Tile 0 is the whole, or the only view of an image that is not cut; the tiles count from 1.
    """

    families: ClassVar[frozenset[str]] = frozenset({"idefics3"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "config.scale_factor",
        "config.vision_config.patch_size",
        "vision_model",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square per tile; the model is not told which tiles are of one image."""
        config = base.config
        height, width = call["pixel_values"].shape[-2:]
        unit = config.vision_config.patch_size * config.scale_factor
        rows, columns = height // unit, width // unit
        n = rows * columns
        # the features of a sample's tiles come in one piece
        number = sum(len(sample) // n for sample in output.pooler_output)
        block, grid = config.scale_factor, Picture.grid(rows, columns)
        each = rows * columns * block**2
        return [grid.over(rows * block, columns * block, block, i * each) for i in range(number)]

    def tower(self, base: Part) -> Tower | None:
        """SigLIP's layers, to the last norm."""
        inner, heads = base.vision_model, base.config.vision_config.num_attention_heads
        layers = inner.encoder.layers
        return Tower(layers, len(layers) - 1, heads, 0, inner.post_layernorm)

    def assemble(
        self, parts: Sequence[Picture], ids: Sequence[int] | None, visual: Sequence[bool]
    ) -> list[Picture]:
        """The images that the tiles of a sample are of, as the tags before them say.

        A tile follows `<fake_token_around_image><row_i_col_j>`; a row of tiles ends with a line
        break; the whole image follows `<fake_token_around_image><global-img>`, and a last
        `<fake_token_around_image>` ends the image. Ids of tags are facts of a tokenizer, which the
        model does not know; where the tags lie is enough.
        """
        rows = None if ids is None else _rows(ids, visual, len(parts))
        if rows is None:
            return list(parts)
        queue, found = list(parts), []
        for image in rows:
            tiles = [[queue.pop(0) for _ in range(n)] for n in image]
            found += _image(tiles)
        return found


@adapters.register("smolvlm")
class SmolVLM(Idefics3):
    """SmolVLM and SmolVLM2: Idefics3's tiles; every frame of a video is an image of its own."""

    families: ClassVar[frozenset[str]] = frozenset({"smolvlm"})


def _rows(ids: Sequence[int], shown: Sequence[bool], tiles: int) -> list[list[int]] | None:
    """Per image the tiles in each of its rows; None where the tags tell of other tiles."""
    images: list[list[int]] = []
    end, at = 0, 0
    for visual, run in groupby(shown):
        start, at = at, at + sum(1 for _ in run)
        if not visual:
            continue
        between, end = list(ids[end:start]), at
        tag = between[-2] if len(between) > 1 else None
        if not images or tag is None or (between[0] == tag and len(between) > 2):
            images.append([1])
        elif len(between) == 2:
            images[-1][-1] += 1
        else:
            images[-1].append(1)
    return images if sum(map(sum, images)) == tiles else None


def _image(tiles: list[list[Picture]]) -> list[Picture]:
    """One picture of rows of tiles and, as the last row, the whole; each its own if they differ."""
    *rows, last = tiles
    if len(last) != 1 or len({len(row) for row in rows}) > 1:
        return [tile for row in tiles for tile in row]
    columns = len(rows[0]) if rows else 0
    views = []
    for i, tile in enumerate(tile for row in rows for tile in row):
        left, top = i % columns / columns, i // columns / len(rows)
        within = (left, top, left + 1 / columns, top + 1 / len(rows))
        number = torch.full_like(tile.tile, i + 1)
        views.append(replace(tile, tile=number, box=moved(tile.box, within)))
    return [Picture.join([*views, *last])]
