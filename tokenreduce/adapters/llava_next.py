"""LLaVA-NeXT / LLaVA-1.6 (transformers `LlavaNextForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from tokenreduce.adapter import Adapter, Part, adapters
from tokenreduce.geometry import Picture, boxes


@adapters.register("llava_next")
class LlavaNext(Adapter):
    """LLaVA-NeXT: the whole image, then a high-resolution grid with a newline after each row.

    Tile 0 is the whole image at low resolution; tile 1 the grid of tiles, joined and with its
    padding cut off, as transformers' `pack_image_features` lays it out.
    """

    families: ClassVar[frozenset[str]] = frozenset({"llava_next"})

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """Coordinates traced through the model's own packing, token by token."""
        vision = base.config.vision_config
        side = vision.image_size // vision.patch_size
        found = []
        for size, features in zip(call["image_sizes"], output.pooler_output, strict=True):
            packed = self._trace(base, size, side)
            fits = len(packed) == len(features)
            found.append(_picture(packed, side) if fits else Picture.unknown(len(features)))
        return found

    def view(self, processor: Any, width: int, height: int) -> tuple[float, float, float, float]:
        """All of it: the whole image is stretched, and the tiles' padding is cut off again."""
        return 0.0, 0.0, 1.0, 1.0

    def _trace(self, base: Part, size: Tensor, side: int) -> Tensor:
        """(n, 3) tile, row and column of every packed token; -1 for newlines."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

        pinpoints = base.config.image_grid_pinpoints
        down, across = get_anyres_image_grid_shape(
            size, pinpoints, base.config.vision_config.image_size
        )
        y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
        whole = torch.stack([torch.zeros_like(y), y, x], dim=1)
        tiles = [
            torch.stack([torch.ones_like(y), y + side * i, x + side * j], dim=1)
            for i in range(down)
            for j in range(across)
        ]
        packed, _ = base.pack_image_features(
            [torch.stack([whole, *tiles]).float()],
            torch.as_tensor(size)[None],
            vision_feature_select_strategy="default",
            image_newline=torch.full((3,), -1.0),
        )
        return cast(Tensor, packed[0].long())


def _picture(packed: Tensor, side: int) -> Picture:
    """The picture of one image, from its tokens' traced coordinates (n, 3)."""
    separator = packed[:, 0] < 0
    index = torch.arange(len(packed))
    # a newline ends the row of the token before it, which is never a newline itself
    source = torch.where(separator, index - 1, index)
    tile, row, column = packed[source].unbind(1)
    column = column + separator.long()
    high = tile == 1
    row, column = row.clone(), column.clone()
    box = boxes(row, column, side, side)
    if bool(high.any()):
        row[high] -= row[high].min()
        column[high] -= column[high].min()
        rows, columns = int(row[high].max()) + 1, int(column[high & ~separator].max()) + 1
        box[high] = boxes(row[high], column[high], rows, columns)
    box[separator] = 0.0
    return Picture(torch.zeros_like(tile), tile, row, column, separator, box)
