"""The model families that ship with tokenreduce, one file each."""

from tokenreduce.adapters import (
    decoder,
    gemma3,
    generic,
    glm4v,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    mistral3,
    paligemma,
    perception_lm,
    qwen2_vl,
    qwen3_vl,
)

__all__ = [
    "decoder",
    "gemma3",
    "generic",
    "glm4v",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "perception_lm",
    "qwen2_vl",
    "qwen3_vl",
]
