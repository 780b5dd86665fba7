"""The methods that ship with tokenreduce, one file each."""

from tokenreduce.strategies import (
    dart,
    divprune,
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
    "dart",
    "divprune",
    "fastervlm",
    "fastv",
    "none",
    "pooling",
    "pyramid_drop",
    "random",
    "stride",
    "vtw",
]
