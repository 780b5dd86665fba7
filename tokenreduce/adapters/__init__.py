"""The model families that ship with tokenreduce, one file each."""

from tokenreduce.adapters import decoder, glm4v, llava, llava_next, qwen2_vl, qwen3_vl

__all__ = ["decoder", "glm4v", "llava", "llava_next", "qwen2_vl", "qwen3_vl"]
