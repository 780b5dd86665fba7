"""The methods that ship with tokenreduce, one file each."""

from tokenreduce.strategies import (
    fastervlm,
    fastv,
    none,
    pooling,
    pyramid_drop,
    random,
    stride,
    vtw,
)

__all__ = [
    "fastervlm",
    "fastv",
    "none",
    "pooling",
    "pyramid_drop",
    "random",
    "stride",
    "vtw",
]
