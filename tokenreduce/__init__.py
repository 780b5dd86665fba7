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

if TYPE_CHECKING:  # the same names for type checkers, documentation and editors
    from tokenreduce import cost
    from tokenreduce.adapter import Adapter, adapters, unwrap
    from tokenreduce.distillation import agreement, distill
    from tokenreduce.downsample import Downsampled, downsample
    from tokenreduce.encoder import EncoderReduction
    from tokenreduce.engine.call import cache_of, with_cache
    from tokenreduce.errors import ContractError, ReductionWarning, UnknownName
    from tokenreduce.geometry import Picture
    from tokenreduce.learned import LearnedScorer, LearnedStrategy
    from tokenreduce.recipe import Recipe
    from tokenreduce.reduction import Reduction, load, reduce, remove
    from tokenreduce.registry import Registry
    from tokenreduce.scheduler import Scheduler, Stop, schedulers
    from tokenreduce.schedulers.cosine import Cosine
    from tokenreduce.schedulers.curriculum import Curriculum
    from tokenreduce.schedulers.explicit import Explicit
    from tokenreduce.schedulers.linear import Linear
    from tokenreduce.schedulers.pyramid import Pyramid
    from tokenreduce.schedulers.single import Single
    from tokenreduce.schedulers.stochastic import Stochastic
    from tokenreduce.solving.search import solve
    from tokenreduce.strategies.cdpruner import CDPruner
    from tokenreduce.strategies.dart import DART
    from tokenreduce.strategies.divprune import DivPrune
    from tokenreduce.strategies.downsample import Downsample
    from tokenreduce.strategies.fastervlm import FasterVLM
    from tokenreduce.strategies.fastv import FastV
    from tokenreduce.strategies.fitprune import FitPrune
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
    from tokenreduce.strategy import Scorer, Strategy, TowerStrategy, select, strategies
    from tokenreduce.tokens import Gate, Merge, Mix, Places, Plan, Tokens

__version__ = "0.1.0"

_HOMES = {
    "adapter": ("Adapter", "adapters", "unwrap"),
    "distillation": ("agreement", "distill"),
    "downsample": ("Downsampled", "downsample"),
    "encoder": ("EncoderReduction",),
    "engine.call": ("cache_of", "with_cache"),
    "errors": ("ContractError", "ReductionWarning", "UnknownName"),
    "geometry": ("Picture",),
    "learned": ("LearnedScorer", "LearnedStrategy"),
    "recipe": ("Recipe",),
    "reduction": ("Reduction", "load", "reduce", "remove"),
    "registry": ("Registry",),
    "scheduler": ("Scheduler", "Stop", "schedulers"),
    "schedulers.cosine": ("Cosine",),
    "schedulers.curriculum": ("Curriculum",),
    "schedulers.explicit": ("Explicit",),
    "schedulers.linear": ("Linear",),
    "schedulers.pyramid": ("Pyramid",),
    "schedulers.single": ("Single",),
    "schedulers.stochastic": ("Stochastic",),
    "solving.search": ("solve",),
    "strategies.cdpruner": ("CDPruner",),
    "strategies.dart": ("DART",),
    "strategies.divprune": ("DivPrune",),
    "strategies.downsample": ("Downsample",),
    "strategies.fastervlm": ("FasterVLM",),
    "strategies.fastv": ("FastV",),
    "strategies.fitprune": ("FitPrune",),
    "strategies.hired": ("HiRED",),
    "strategies.none": ("Keep",),
    "strategies.pact": ("PACT",),
    "strategies.pooling": ("Pooling",),
    "strategies.prumerge": ("PruMerge",),
    "strategies.pyramid_drop": ("PyramidDrop",),
    "strategies.random": ("Random",),
    "strategies.scorer_mlp": ("ScorerMLP",),
    "strategies.sparsevlm": ("SparseVLM",),
    "strategies.stride": ("Stride",),
    "strategies.visionzip": ("VisionZip",),
    "strategies.vispruner": ("VisPruner",),
    "strategies.tome": ("ToMe",),
    "strategies.vtw": ("VTW",),
    "strategy": ("Scorer", "Strategy", "TowerStrategy", "select", "strategies"),
    "tokens": ("Gate", "Merge", "Mix", "Places", "Plan", "Tokens"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

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
    happens. Where a public name is the same, the public name stands.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
