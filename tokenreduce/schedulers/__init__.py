"""The schedules that ship with tokenreduce, one file each; all of this folder is imported."""

# mypy: implicit-reexport
# ruff: noqa: F401

from typing import TYPE_CHECKING, Any

from tokenreduce.registry import import_modules
from tokenreduce.scheduler import schedulers

# generated: scheduler-classes
if TYPE_CHECKING:
    from tokenreduce.schedulers.cosine import Cosine
    from tokenreduce.schedulers.curriculum import Curriculum
    from tokenreduce.schedulers.explicit import Explicit
    from tokenreduce.schedulers.linear import Linear
    from tokenreduce.schedulers.pyramid import Pyramid
    from tokenreduce.schedulers.single import Single
    from tokenreduce.schedulers.stochastic import Stochastic
# end

import_modules(__name__)


def __getattr__(name: str) -> Any:
    """The class of a registered schedule: `from tokenreduce.schedulers import Single`."""
    for kind in schedulers.values():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
