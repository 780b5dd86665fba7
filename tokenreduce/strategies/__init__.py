"""The methods that ship with tokenreduce, one file each."""

from tokenreduce.strategies import fastv, none, pooling, pyramid_drop, random, stride, vtw

__all__ = ["fastv", "none", "pooling", "pyramid_drop", "random", "stride", "vtw"]
