"""The methods that ship with tokenreduce, one file each."""

from tokenreduce.strategies import (
    dart,
    divprune,
    fastervlm,
    fastv,
    fitprune,
    none,
    pact,
    pooling,
    pyramid_drop,
    random,
    sparsevlm,
    stride,
    tome,
    visionzip,
    vispruner,
    vtw,
)

__all__ = [
    "dart",
    "divprune",
    "fastervlm",
    "fastv",
    "fitprune",
    "none",
    "pact",
    "pooling",
    "pyramid_drop",
    "random",
    "sparsevlm",
    "stride",
    "tome",
    "visionzip",
    "vispruner",
    "vtw",
]
