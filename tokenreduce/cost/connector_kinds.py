"""How the families connect their vision tower, one function for each kind."""

from __future__ import annotations

from math import prod
from typing import Any

from tokenreduce.cost.connector import (
    Connector,
    Projector,
    Resampler,
    Step,
    connectors,
    merger,
    two_layers,
)
from tokenreduce.cost.entries import read, size
from tokenreduce.cost.tower_sizes import TowerShape
from tokenreduce.errors import BadOption


@connectors.register("llava")
def llava(config: Any, tower: TowerShape, width: int) -> Connector:
    """LLaVA: two matrices, on the features of one layer or of several side by side."""
    return two_layers(tower.hidden * _layers(config), width)


@connectors.register("vipllava")
def vipllava(config: Any, tower: TowerShape, width: int) -> Connector:
    """ViP-LLaVA: the same, on the features of several layers."""
    return two_layers(tower.hidden * _layers(config), width)


@connectors.register("llava_next")
@connectors.register("llava_onevision")
def tiled(config: Any, tower: TowerShape, width: int) -> Connector:
    """LLaVA-NeXT, LLaVA-OneVision: the same, on every tile; then tiles are joined and unpadded."""
    return two_layers(tower.hidden * _layers(config), width, arranged=True)


@connectors.register("llava_next_video")
def llava_next_video(config: Any, tower: TowerShape, width: int) -> Connector:
    """LLaVA-NeXT-Video: the same; frames are averaged in squares before.

    Raises:
        ValueError: frames that are shortened otherwise.
    """
    mode = read(config, "spatial_pool_mode") or "average"
    if mode not in ("average", "max"):
        raise BadOption(f"no formula here describes spatial_pool_mode={mode!r}")
    by = int(read(config, "spatial_pool_stride") or 2)
    return two_layers(tower.hidden * _layers(config), width, arranged=True, video_pool=by)


@connectors.register("perception_lm")
def perception_lm(config: Any, tower: TowerShape, width: int) -> Connector:
    """Perception LM: two matrices on every patch, averaged in squares after them."""
    by = int(read(config, "projector_pooling_ratio") or 1)
    return Projector((Step(tower.hidden, width), Step(width, width)), by * by)


@connectors.register("paligemma")
def paligemma(config: Any, tower: TowerShape, width: int) -> Connector:
    """PaliGemma: one matrix on every patch."""
    part = read(config, "vision_config")
    return Projector((Step(tower.hidden, read(part, "projection_dim") or width),))


@connectors.register("gemma3")
def gemma3(config: Any, tower: TowerShape, width: int) -> Connector:
    """Gemma 3: patches averaged in squares, then one matrix."""
    area = prod(tower.side or (1, 1)) // size(config, "mm_tokens_per_image")
    return Projector((Step(tower.hidden, width, area),), area)


@connectors.register("idefics3")
@connectors.register("smolvlm")
def idefics3(config: Any, tower: TowerShape, width: int) -> Connector:
    """Idefics3, SmolVLM: one matrix on every square of patches."""
    area = size(config, "scale_factor") ** 2
    return Projector((Step(area * tower.hidden, width, area),), area)


@connectors.register("internvl")
def internvl(config: Any, tower: TowerShape, width: int) -> Connector:
    """InternVL: two matrices on every square of patches."""
    area = round(1 / float(read(config, "downsample_ratio") or 0.5)) ** 2
    return Projector((Step(area * tower.hidden, width, area), Step(width, width, area)), area)


@connectors.register("mistral3")
def mistral3(config: Any, tower: TowerShape, width: int) -> Connector:
    """Mistral 3: one matrix merges a square of patches, two follow."""
    area, d = size(config, "spatial_merge_size") ** 2, tower.hidden
    steps = (
        Step(area * d, d, area),
        Step(d * _layers(config), width, area),
        Step(width, width, area),
    )
    return Projector(steps, area)


@connectors.register("qwen2_vl")
def qwen2_vl(config: Any, tower: TowerShape, width: int) -> Connector:
    """Qwen2-VL: the merger at the end of its tower."""
    return merger(read(config, "vision_config"), tower.hidden, width)


@connectors.register("qwen2_5_vl")
def qwen2_5_vl(config: Any, tower: TowerShape, width: int) -> Connector:
    """Qwen2.5-VL: the same."""
    return merger(read(config, "vision_config"), tower.hidden, width)


@connectors.register("qwen3_vl")
@connectors.register("qwen3_vl_moe")
def qwen3_vl(config: Any, tower: TowerShape, width: int) -> Connector:
    """Qwen3-VL: the same, and once more for every layer that DeepStack reads."""
    part = read(config, "vision_config")
    deep = len(read(part, "deepstack_visual_indexes") or ())
    return merger(part, tower.hidden, width, times=1 + deep)


@connectors.register("glm4v")
def glm4v(config: Any, tower: TowerShape, width: int) -> Connector:
    """GLM-4V: a convolution on every square of patches, one matrix and a gated FFN."""
    part = read(config, "vision_config")
    area, inner = size(part, "spatial_merge_size") ** 2, size(part, "intermediate_size")
    out = size(part, "out_hidden_size")
    steps = (Step(area * tower.hidden, out, area), Step(out, out, area), Step(out, inner, area, 3))
    return Projector(steps, area)


@connectors.register("aria")
def aria(config: Any, tower: TowerShape, width: int) -> Connector:
    """Aria: learned queries."""
    return Resampler(tower.hidden, width, dict(read(config, "projector_patch_to_query_dict")))


def _layers(config: Any) -> int:
    """How many layers of the tower give features."""
    found = read(config, "vision_feature_layer")
    return len(found) if isinstance(found, list | tuple) else 1
