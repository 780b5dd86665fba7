"""Qwen3-VL (transformers `Qwen3VLForConditionalGeneration`)."""

from __future__ import annotations

from typing import ClassVar

from tokenreduce.adapter import adapters
from tokenreduce.adapters.qwen2_vl import Qwen2VL


@adapters.register("qwen3_vl")
class Qwen3VL(Qwen2VL):
    """Qwen3-VL: Qwen2-VL's grids; features of earlier vision layers join after the first layers.

    The text between the frames of a video is its time stamps. Features that join after a layer
    (DeepStack) join the tokens that are left there.
    """

    families: ClassVar[frozenset[str]] = frozenset({"qwen3_vl"})
    feature_injections: ClassVar[tuple[str, ...]] = ("_deepstack_process",)
