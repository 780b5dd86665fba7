"""The schedules that ship with tokenreduce, one file each."""

from tokenreduce.schedulers.cosine import Cosine
from tokenreduce.schedulers.explicit import Explicit
from tokenreduce.schedulers.linear import Linear
from tokenreduce.schedulers.pyramid import Pyramid
from tokenreduce.schedulers.single import Single

__all__ = ["Cosine", "Explicit", "Linear", "Pyramid", "Single"]
