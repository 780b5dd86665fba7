"""tokenreduce: drop, merge or pool the redundant visual tokens of vision-language models.

Example:
    import tokenreduce as tr

    with tr.reduce(model, "pyramid_drop") as reduction:
        out = model.generate(**inputs)
    print(reduction.report)
"""

# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

# The public names, once; `python scripts/generate.py` writes the two parts below them.
if TYPE_CHECKING:
    from tokenreduce import cost
    from tokenreduce.adapter import Adapter, adapters, unwrap
    from tokenreduce.downsample import Downsampled, downsample
    from tokenreduce.encoder import EncoderReduction
    from tokenreduce.engine.call import cache_of, with_cache
    from tokenreduce.errors import ContractError, ReductionWarning, UnknownName
    from tokenreduce.geometry import Picture
    from tokenreduce.learning.distill import agreement, distill
    from tokenreduce.learning.strategy import LearnedScorer, LearnedStrategy
    from tokenreduce.paper import Paper
    from tokenreduce.recipe import Recipe
    from tokenreduce.reduction import Reduction, load, reduce, remove
    from tokenreduce.registry import Registry
    from tokenreduce.scheduler import Scheduler, Stop, schedulers
    from tokenreduce.selection import select
    from tokenreduce.solving.search import solve
    from tokenreduce.strategy import Scorer, Strategy, TowerStrategy, strategies
    from tokenreduce.tokens import Gate, Merge, Mix, Places, Plan, Tokens

# generated: registered-classes
if TYPE_CHECKING:
    from tokenreduce.schedulers.cosine import Cosine
    from tokenreduce.schedulers.curriculum import Curriculum
    from tokenreduce.schedulers.explicit import Explicit
    from tokenreduce.schedulers.linear import Linear
    from tokenreduce.schedulers.pyramid import Pyramid
    from tokenreduce.schedulers.single import Single
    from tokenreduce.schedulers.stochastic import Stochastic
    from tokenreduce.strategies.cdpruner import CDPruner
    from tokenreduce.strategies.dart import DART
    from tokenreduce.strategies.divprune import DivPrune
    from tokenreduce.strategies.downsample import Downsample
    from tokenreduce.strategies.fastervlm import FasterVLM
    from tokenreduce.strategies.fastv import FastV
    from tokenreduce.strategies.fitprune import FitPrune
    from tokenreduce.strategies.hiprune import HiPrune
    from tokenreduce.strategies.hired import HiRED
    from tokenreduce.strategies.none import Keep
    from tokenreduce.strategies.pact import PACT
    from tokenreduce.strategies.pooling import Pooling
    from tokenreduce.strategies.prumerge import PruMerge
    from tokenreduce.strategies.pyramid_drop import PyramidDrop
    from tokenreduce.strategies.random import Random
    from tokenreduce.strategies.scorer_mlp import ScorerMLP
    from tokenreduce.strategies.sparsevlm import SparseVLM
    from tokenreduce.strategies.stride import Stride
    from tokenreduce.strategies.tome import ToMe
    from tokenreduce.strategies.visionzip import VisionZip
    from tokenreduce.strategies.vispruner import VisPruner
    from tokenreduce.strategies.vtw import VTW
# end

__version__ = "0.1.0"

# generated: homes
_HOME = {
    "Adapter": "adapter",
    "CDPruner": "strategies.cdpruner",
    "ContractError": "errors",
    "Cosine": "schedulers.cosine",
    "Curriculum": "schedulers.curriculum",
    "DART": "strategies.dart",
    "DivPrune": "strategies.divprune",
    "Downsample": "strategies.downsample",
    "Downsampled": "downsample",
    "EncoderReduction": "encoder",
    "Explicit": "schedulers.explicit",
    "FastV": "strategies.fastv",
    "FasterVLM": "strategies.fastervlm",
    "FitPrune": "strategies.fitprune",
    "Gate": "tokens",
    "HiPrune": "strategies.hiprune",
    "HiRED": "strategies.hired",
    "Keep": "strategies.none",
    "LearnedScorer": "learning.strategy",
    "LearnedStrategy": "learning.strategy",
    "Linear": "schedulers.linear",
    "Merge": "tokens",
    "Mix": "tokens",
    "PACT": "strategies.pact",
    "Paper": "paper",
    "Picture": "geometry",
    "Places": "tokens",
    "Plan": "tokens",
    "Pooling": "strategies.pooling",
    "PruMerge": "strategies.prumerge",
    "Pyramid": "schedulers.pyramid",
    "PyramidDrop": "strategies.pyramid_drop",
    "Random": "strategies.random",
    "Recipe": "recipe",
    "Reduction": "reduction",
    "ReductionWarning": "errors",
    "Registry": "registry",
    "Scheduler": "scheduler",
    "Scorer": "strategy",
    "ScorerMLP": "strategies.scorer_mlp",
    "Single": "schedulers.single",
    "SparseVLM": "strategies.sparsevlm",
    "Stochastic": "schedulers.stochastic",
    "Stop": "scheduler",
    "Strategy": "strategy",
    "Stride": "strategies.stride",
    "ToMe": "strategies.tome",
    "Tokens": "tokens",
    "TowerStrategy": "strategy",
    "UnknownName": "errors",
    "VTW": "strategies.vtw",
    "VisPruner": "strategies.vispruner",
    "VisionZip": "strategies.visionzip",
    "adapters": "adapter",
    "agreement": "learning.distill",
    "cache_of": "engine.call",
    "distill": "learning.distill",
    "downsample": "downsample",
    "load": "reduction",
    "reduce": "reduction",
    "remove": "reduction",
    "schedulers": "scheduler",
    "select": "selection",
    "solve": "solving.search",
    "strategies": "strategy",
    "unwrap": "adapter",
    "with_cache": "engine.call",
}
# end

__all__ = ["__version__", "cost", *_HOME]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: `tokenreduce --help` needs no torch."""
    if name == "cost":
        return importlib.import_module("tokenreduce.cost")
    if name not in _HOME:
        raise AttributeError(f"module 'tokenreduce' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tokenreduce.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names alone, for completion; what else the module holds is its own."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _Package(ModuleType):
    """The package; `tr.strategies` is the registry, although a folder has that name as well.

    Python makes a submodule an attribute of its package when it is first imported, wherever that
    happens. Where a public name is the same, the public name wins.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
