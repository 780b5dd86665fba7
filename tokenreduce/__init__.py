"""tokenreduce: drop, merge or pool the redundant visual tokens of vision-language models.

    import tokenreduce as tr

    with tr.reduce(model, "pyramid_drop") as reduction:
        out = model.generate(**inputs)
    print(reduction.report)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenreduce import adapters as _adapters  # registers the families that ship
from tokenreduce import cost
from tokenreduce import schedulers as _schedulers
from tokenreduce import strategies as _strategies
from tokenreduce.adapter import Adapter, adapters
from tokenreduce.geometry import Picture
from tokenreduce.registry import Registry, UnknownName
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.schedulers.cosine import Cosine
from tokenreduce.schedulers.explicit import Explicit
from tokenreduce.schedulers.linear import Linear
from tokenreduce.schedulers.pyramid import Pyramid
from tokenreduce.schedulers.single import Single
from tokenreduce.strategies.fastv import FastV
from tokenreduce.strategies.none import Keep
from tokenreduce.strategies.pooling import Pooling
from tokenreduce.strategies.pyramid_drop import PyramidDrop
from tokenreduce.strategies.random import Random
from tokenreduce.strategies.stride import Stride
from tokenreduce.strategies.vtw import VTW
from tokenreduce.strategy import Scorer, Strategy, select, strategies
from tokenreduce.tokens import Places, Plan, Tokens

if TYPE_CHECKING:
    from tokenreduce.checkpoint import load
    from tokenreduce.reduction import Reduction, ReductionWarning, reduce, unwrap

__version__ = "0.1.0"

_ON_DEMAND = {
    "Reduction": "tokenreduce.reduction",
    "ReductionWarning": "tokenreduce.reduction",
    "reduce": "tokenreduce.reduction",
    "unwrap": "tokenreduce.reduction",
    "load": "tokenreduce.checkpoint",
}
"""Names whose modules need transformers, which `import tokenreduce` does not load."""


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        import importlib

        return getattr(importlib.import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module 'tokenreduce' has no attribute {name!r}")
