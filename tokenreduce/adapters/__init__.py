"""The model families that ship with tokenreduce, one file each."""

from tokenreduce.adapters import decoder, llava, llava_next

__all__ = ["decoder", "llava", "llava_next"]
