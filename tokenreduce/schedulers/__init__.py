"""The schedules that ship with tokenreduce, one file each."""

from tokenreduce.schedulers.cosine import Cosine
from tokenreduce.schedulers.curriculum import Curriculum
from tokenreduce.schedulers.explicit import Explicit
from tokenreduce.schedulers.linear import Linear
from tokenreduce.schedulers.pyramid import Pyramid
from tokenreduce.schedulers.single import Single
from tokenreduce.schedulers.stochastic import Stochastic

__all__ = ["Cosine", "Curriculum", "Explicit", "Linear", "Pyramid", "Single", "Stochastic"]
