"""InternVL 2.5 and 3 (transformers `InternVLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.adapters.llava import feature_layer
from tokenreduce.adapters.tiles import from_tiles, tile
from tokenreduce.evidence import TOWER
from tokenreduce.geometry import Picture, by_run
from tokenreduce.tower import Part, Tower


class InternViT(Tower):
    """InternVL's tower, which may norm queries and keys over their full width."""

    takes_mask: ClassVar[bool] = False

    @override
    def attention(self, layer: Part) -> Part:
        return layer.attention

    def projections(self, layer: Part) -> tuple[Part, Part]:
        """The norms, which do nothing where a checkpoint has none."""
        return layer.attention.q_norm, layer.attention.k_norm

    def entrance(self, layer: Part) -> Part:
        """The norm in front of a layer's attention."""
        return layer.layernorm_before

    def mlp(self, layer: Part) -> tuple[Part, Part]:
        """The norm in front of a layer's MLP, and the MLP."""
        return layer.layernorm_after, layer.mlp


@adapters.register("internvl")
class InternVL(Adapter):
    """InternVL 2.5 and 3: an image is a run of square tiles, its thumbnail the last of them.

    Tile 0 is the thumbnail, or the only view of an image that is not cut; the tiles of the image
    count from 1. A frame of a video is an image like any other.
    """

    families: ClassVar[frozenset[str]] = frozenset({"internvl"})
    evidence: ClassVar[frozenset[str]] = Adapter.evidence | frozenset(TOWER)
    reads: ClassVar[tuple[str, ...]] = (
        "config.downsample_ratio",
        "config.vision_config.patch_size",
    )

    def pictures(self, base: Part, call: Mapping[str, Any], output: Any) -> list[Picture]:
        """A square grid per tile; the model is not told which tiles are of one image."""
        height, width = base.config.vision_config.patch_size
        block = round(1 / base.config.downsample_ratio)
        found, first = [], 0
        for pixels, features in zip(call["pixel_values"], output.pooler_output, strict=True):
            rows, columns = pixels.shape[-2] // height, pixels.shape[-1] // width
            found.append(tile(pixels, len(features)).over(rows, columns, block, first))
            first += rows * columns
        return found

    def tower(self, base: Part) -> Tower | None:
        """InternViT."""
        config, layers = base.config.vision_config, base.vision_tower.encoder.layer
        norm = base.vision_tower.layernorm if base.config.vision_feature_layer == -1 else None
        feature = feature_layer(base, len(layers))
        return InternViT(layers, feature, config.num_attention_heads, 1, norm)

    def merging(self, base: Part) -> frozenset[str]:
        """A token is made of a square of patches, whose groups may differ."""
        return frozenset({"expanded"})

    def assemble(
        self, parts: Sequence[Picture], ids: Sequence[int] | None, visual: Sequence[bool]
    ) -> list[Picture]:
        """An image for every run of tiles, laid out as its thumbnail shows."""
        return by_run(parts, visual, lambda tiles: from_tiles(tiles, -1))
