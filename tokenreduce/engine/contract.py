"""What the engine relies on in a model and in transformers, stated once and checked twice.

`check_model` looks at a live model when `reduce()` is called; `check_continued` and `check_pass` at
what a forward pass shows. What is not there is an error that names it, the model and the version.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokenreduce.adapter import Adapter, adapters
from tokenreduce.engine import call as spelled
from tokenreduce.engine.cache import SHORTENED, ShortLayer
from tokenreduce.engine.call import ModelCall, role
from tokenreduce.engine.probe import FAILS, trial
from tokenreduce.engine.sequence import Sequence
from tokenreduce.errors import ContractError, ReductionWarning
from tokenreduce.tower import Part

OLDEST, NEWEST = (5, 5), (5, 24)
"""The minor releases of transformers between which the laws were measured to hold."""

Fact = Callable[[Adapter, Part], "str | None"]


@dataclass(frozen=True)
class Clause:
    """One thing that the engine relies on.

    Attributes:
        says: what must hold, as a sentence.
        missing: (adapter, model) -> what was found in its place, or None where it holds.
    """

    says: str
    missing: Fact


CONTRACT: list[Clause] = []
"""Every clause, in the order in which they are checked."""


def clause(says: str) -> Callable[[Fact], Fact]:
    """Adds a clause to the contract."""

    def add(missing: Fact) -> Fact:
        CONTRACT.append(Clause(says, missing))
        return missing

    return add


# -- before anything runs --------------------------------------------------------------------------


@clause("a cache has `layers`, which store keys and values through `update`")
def _caches(adapter: Adapter, model: Part) -> str | None:
    for kind, names in CACHE_PARTS.items():
        for name in names:
            if not hasattr(kind, name):
                return f"{kind.__name__} has no `{name}`"
    return None if hasattr(DynamicCache(), "layers") else "DynamicCache has no `layers`"


CACHE_PARTS: Mapping[type, tuple[str, ...]] = {
    Cache: ("update", "get_seq_length"),
    DynamicLayer: (
        "update",
        "get_seq_length",
        "get_mask_sizes",
        "reorder_cache",
        "batch_repeat_interleave",
        "batch_select_indices",
        "crop",
        "reset",
    ),
    DynamicSlidingWindowLayer: ("update", "get_mask_sizes"),
}
"""What the engine uses of transformers' cache classes."""


@clause("the decoder takes keyword arguments, and hands them on to its layers")
def _handed_on(adapter: Adapter, model: Part) -> str | None:
    decoder = adapter.decoder(model)
    if not spelled.catches_all(decoder.forward):
        return f"{type(decoder).__name__}.forward takes no **kwargs"
    return None


@clause("a decoder layer takes hidden states first, a mask, rotary tables and a cache")
def _layers(adapter: Adapter, model: Part) -> str | None:
    decoder = adapter.decoder(model)
    if not len(decoder.layers):
        return f"{type(decoder).__name__}.layers is empty"
    kinds = {type(layer): layer for layer in decoder.layers}
    for kind, layer in kinds.items():
        for what, known in spelled.ROLES.items():
            if what == "position_ids" or what == "hidden":
                continue
            if spelled.catches_all(layer.forward) and what != "rotary":
                continue
            if role(layer.forward, known, "Cache" if what == "cache" else None) is None:
                names = " or ".join(f"`{name}`" for name in known)
                return f"{kind.__name__}.forward takes no {names}"
    return None


@clause("attention writes its keys and values into the cache layer of its own number")
def _numbers(adapter: Adapter, model: Part) -> str | None:
    for i, layer in enumerate(adapter.decoder(model).layers):
        numbers = {
            number
            for part in layer.modules()
            if isinstance(number := getattr(part, "layer_idx", None), int)
        }
        if numbers - {i}:
            return f"{type(layer).__name__} {i} writes into cache layer {min(numbers - {i})}"
    return None


OWN_CACHE = "the model's own cache stores plain keys and values, growing or in a sliding window"


@clause(OWN_CACHE)
def _own_cache(adapter: Adapter, model: Part) -> str | None:
    config = adapter.decoder(model).config
    odd = {type(layer) for layer in DynamicCache(config=config).layers} - set(SHORTENED)
    if not odd:
        return None
    kinds = getattr(config, "layer_types", None)
    said = f" (its layer_types: {', '.join(sorted(set(kinds)))})" if kinds else ""
    return f"its cache has layers of type {', '.join(sorted(x.__name__ for x in odd))}{said}"


@clause("the model's weights are there")
def _weights(adapter: Adapter, model: Part) -> str | None:
    sent = any(hasattr(part, "_hf_hook") for part in model.modules())
    if not sent and all(weight.is_meta for weight in model.parameters()):
        return "all of its weights are on the meta device: load the checkpoint"
    return None


@clause("what an adapter reads of a model of its family is there")
def _facts(adapter: Adapter, model: Part) -> str | None:
    name = type(adapter).__name__
    try:
        base, decoder = adapter.base(model), adapter.decoder(model)
        facts = [adapter.visual_ids(base.config), adapter.tower(base)]
        if adapter.evidence:
            for layer in decoder.layers:
                facts += [adapter.key_projection(layer), adapter.query_projection(layer)]
    except FAILS as error:
        return f"{name} finds it built otherwise ({type(error).__name__}: {error})"
    if adapter.encoders and not any(hasattr(base, one) for one in adapter.encoders):
        return f"{type(base).__name__} has none of {name}'s {', '.join(adapter.encoders)}"
    if lacking := [path for path in adapter.reads if not _has(base, path)]:
        return f"{type(base).__name__} has no {lacking[0]}, which {name} reads"
    if reason := _added_between(adapter, decoder):
        return reason
    kind = getattr(model.config, "model_type", "")
    if kind in adapter.families or not adapter.families:
        return None
    odd = trial(adapter, decoder)  # a family that the adapter is named for, by the caller alone
    return None if odd is None else f"{name} is not the adapter of {kind!r}: {odd}"


def _has(base: Part, path: str) -> bool:
    """Whether a module has what a dotted path names, and a method the parameter after a colon."""
    path, _, parameter = path.partition(":")
    found: Any = base
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return not parameter or parameter in spelled.parameters(found)


def _added_between(adapter: Adapter, decoder: Part) -> str | None:
    """Why features that the decoder adds between its layers would miss their tokens."""
    kind, name = type(decoder).__name__, type(adapter).__name__
    for method in adapter.feature_injections:
        if not hasattr(decoder, method):
            return f"{kind} has no {method}, which {name} reads"
    for other in adapters.values():
        for method in other.feature_injections:
            if hasattr(decoder, method) and method not in adapter.feature_injections:
                return f"{kind} adds features between its layers ({method}), unknown to {name}"
    return None


def check_layers(model: nn.Module) -> None:
    """Refuses layers that carry a state over all tokens, for that reason and before any other.

    Raises:
        ContractError: a cache whose layers cannot be short.
    """
    reader = Adapter()
    try:
        found = _own_cache(reader, model)
    except FAILS:
        return  # no transformers model, or one of another build: the adapter says which
    if found is not None:
        raise broken(type(model).__name__, OWN_CACHE, found)


def check_model(adapter: Adapter, model: nn.Module) -> None:
    """Refuses a model that lacks something that the engine relies on.

    Args:
        adapter: how the model is read.
        model: the transformers model.

    Raises:
        ContractError: the first clause that does not hold.
    """
    warn_of_version()
    for one in CONTRACT:
        found = one.missing(adapter, model)
        if found is not None:
            raise broken(type(model).__name__, one.says, found)


def broken(model: str, says: str, found: str) -> ContractError:
    """The error for a clause that does not hold."""
    return ContractError(
        f"transformers {installed()}, {model}: the engine needs that {says}, but "
        f"{found} ({known()})"
    )


def installed() -> str:
    """The version of transformers that is installed.

    Asked anew: the module puts another in its own place while it is imported.
    """
    import transformers

    return str(transformers.__version__)


def known() -> str:
    """Which releases the laws were measured on."""
    return f"measured to work: transformers {_said(OLDEST)} to {_said(NEWEST)}"


def warn_of_version() -> None:
    """Says once, in one line, that this transformers was never measured."""
    version = installed()
    number = tuple(int(part) for part in version.split(".")[:2])
    if OLDEST <= number <= NEWEST or version in _told:
        return
    _told.add(version)
    where = "newer than" if number > NEWEST else "older than"
    warnings.warn(
        f"transformers {version} is {where} every release on which this tokenreduce was measured "
        f"({_said(OLDEST)} to {_said(NEWEST)}): what is known to change is checked and refused, "
        "but compare a few answers with the unreduced model's, or install a measured release",
        ReductionWarning,
        stacklevel=4,
    )


_told: set[str] = set()


def _said(number: tuple[int, int]) -> str:
    return ".".join(map(str, number))


# -- at a forward pass -----------------------------------------------------------------------------


def check_cache(cache: Any) -> None:
    """Refuses a cache that cannot hold the keys and values of reduced pictures.

    Raises:
        ContractError: one of an unknown kind, or one that moves its layers by itself.
    """
    if spelled.foreign(cache):
        raise strange_cache(cache)
    if getattr(cache, "offloading", False):
        raise ContractError(
            "an offloaded cache moves its layers by itself and cannot hold reduced tokens: use a "
            "DynamicCache without offloading=True"
        )


def strange_cache(cache: Any) -> ContractError:
    """The error for pictures whose keys and values go into a cache of an unknown kind."""
    return ContractError(
        f"pictures cannot be reduced in a {type(cache).__name__}, which is no transformers Cache "
        "with `layers`: use a DynamicCache (the default of generate()), or remove the reduction; "
        f"prompts of text alone pass (transformers {installed()})"
    )


def replica(module: nn.Module) -> ContractError:
    """The error for a copy of a reduced model that shares its hooks."""
    return ContractError(
        f"this {type(module).__name__} is a replica of the reduced model, as nn.DataParallel makes "
        "them, and would be encoded and scored with the original's weights: use "
        "DistributedDataParallel, or remove the reduction"
    )


def exported() -> ContractError:
    """The error for a reduced model that is exported."""
    return ContractError(
        "a reduced model cannot be exported or traced (torch.export, torch.jit): which tokens stay "
        "is decided on the host as the model runs; export the unreduced model, or one that is "
        "given fewer visual tokens (tokenreduce.integrations.vllm.embed: a stop at layer 0)"
    )


def packed_rows() -> ContractError:
    """The error for several prompts in one row."""
    return ContractError(
        "several prompts with pictures are packed into one row (position ids that start again, or "
        "cu_seq_lens): a choice would mix them; train with padded batches (no padding-free "
        "collator, packing=False), or remove the reduction"
    )


def check_encoded(base: nn.Module, given: ModelCall) -> None:
    """Refuses pictures that were encoded beforehand, where the model would leave them out.

    Raises:
        ContractError: an argument for them that this release's model does not know.
    """
    if given.encoded and spelled.ENCODED not in inspect.signature(base.forward).parameters:
        raise ContractError(
            f"transformers {installed()}, {type(base).__name__}: its forward knows no "
            f"`{spelled.ENCODED}` and would leave these pictures out: pass the pixel values, or "
            "install a newer transformers"
        )


def check_continued(given: ModelCall, seq: Sequence) -> None:
    """Refuses a pass that goes on from earlier tokens, of which no cache can be found.

    Raises:
        ContractError: the attention mask covers more tokens than the pass and its cache have.
    """
    mask = given.mask
    if not seq.config.stops or not isinstance(mask, Tensor) or mask.dim() != 2:
        return
    if given.cache is None and mask.shape[1] > seq.length:
        raise _lost(
            seq,
            "a pass that goes on from cached tokens is given their cache",
            f"a pass of {seq.length} tokens came with a mask over {mask.shape[1]}, and none of "
            f"its arguments is a cache ({', '.join(sorted(given.given))})",
        )


def check_pass(seq: Sequence, returned: Any) -> None:
    """Refuses the outcome of a pass that was not reduced as it was asked to be.

    Args:
        seq: the pass, after its last layer.
        returned: the cache that the decoder has returned, if any.

    Raises:
        ContractError: a stop that was not reached, a cache that no layer was given, or a cache
            layer after a stop that is not a short one.
    """
    stops = seq.config.stops
    if not stops:
        return
    if seq.prompt is not None:
        missed = sorted(set(stops) - {stage.layer for stage in seq.stops})
        if missed:
            raise _lost(
                seq,
                "the decoder calls its layers in order and hands keyword arguments on to them",
                f"the stop at layer {missed[0]} was never reached",
            )
        if spelled.foreign(returned):
            raise strange_cache(returned)
        if returned is not None and seq.cache is None:
            raise _lost(
                seq,
                "a decoder layer is given the cache that the decoder returns",
                "no layer was given one",
            )
    if seq.cache is not None:
        _check_stored(seq)


def _check_stored(seq: Sequence) -> None:
    """Refuses a cache that holds plain layers after a stop, or layers that wrote nothing."""
    cache = seq.cache
    first = min(
        (stage.layer for stage in seq.stages if stage.step is not None), default=len(cache.layers)
    )
    for i, layer in enumerate(cache.layers):
        short = isinstance(layer, ShortLayer)
        if short and layer.pending is not None:
            raise _lost(
                seq,
                "every layer writes its keys and values into the cache",
                f"layer {i} wrote none",
            )
        if i >= first and not short:
            raise _lost(
                seq,
                "the cache of every layer after a stop is shortened",
                f"layer {i} of the cache is a plain {type(layer).__name__}",
            )


def _lost(seq: Sequence, says: str, found: str) -> ContractError:
    return broken(type(seq.config.decoder).__name__, says, found)
