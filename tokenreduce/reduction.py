"""`reduce()`: puts a strategy and a scheduler to work on a live model, and takes them off again.

This is the only code with state: hook handles, training progress, and the record of the latest
prompt. Everything else travels with one forward pass or lives with its KV cache.
Shapes: b samples, l sequence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

from torch import Tensor, nn

from tokenreduce import checkpoint, plugins
from tokenreduce.adapter import Adapter, adapter_for, adapters, unwrap
from tokenreduce.compatibility import check_compatible, check_options
from tokenreduce.engine.contract import check_layers, check_model
from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.engine.hooks import owners_of
from tokenreduce.engine.site import DecoderSite
from tokenreduce.engine.state import Marks
from tokenreduce.engine.tower.bridge import TowerBridge
from tokenreduce.engine.tower.merging import Merged
from tokenreduce.engine.tower.site import TowerSite
from tokenreduce.errors import BadOption, Incompatible, ReductionWarning, warn_once
from tokenreduce.geometry import Picture
from tokenreduce.recipe import Logits, Recipe
from tokenreduce.report import Record
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.strategy import Positions, Strategy, TowerStrategy
from tokenreduce.tokens import Plan
from tokenreduce.tower import encoder_tower


class Reduction:
    """A strategy and a scheduler at work on one model. A context manager; made by `reduce()`.

    It has a site at the inputs of decoder layers, one inside the vision tower, or both.

    Attributes:
        model: as `reduce()` was given it.
        recipe: with what it is reduced: nothing in it is left to be found.
        strategy, scheduler, adapter, positions, logits, seed, min_tokens: as given to `reduce`; a
            plain vision encoder has no adapter, and maybe no scheduler.
        decoder: the module whose `layers` are the decoder layers; None for a vision encoder.
        tower: what is merged inside the vision tower (plans, groups, sizes, report); None where
            nothing is.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        strategy = self.strategy = recipe.strategy
        scheduler = self.scheduler = recipe.scheduler
        self.positions: Positions = recipe.positions or "keep"
        self.logits, self.seed, self.min_tokens = recipe.logits, recipe.seed, recipe.min_tokens
        adapter = self.adapter = recipe.adapter if isinstance(recipe.adapter, Adapter) else None
        self.decoder: Any = None
        self.tower: TowerSite | None = None
        self._at_layers: DecoderSite | None = None
        self._companions: list[Reduction] = []
        core = unwrap(model)
        self._blocks = 0  # open `with` blocks: the outermost takes the hooks off
        if adapter is None or scheduler is None:
            self.tower = _encoder_site(core, recipe)
        else:
            self.decoder = adapter.decoder(core)
            roots = [model]
            config = EngineConfig(
                adapter,
                self.decoder,
                strategy,
                {},
                self.positions,
                self.seed,
                min_tokens=self.min_tokens,
            )
            roots += [core] if core is not model else []
            text = self.logits == "text"
            self._at_layers = DecoderSite(roots, adapter.base(core), config, scheduler, text)
            if isinstance(strategy, TowerStrategy) and strategy.tower is not None:
                tower = adapter.tower(adapter.base(core))
                assert tower is not None  # `reduce` has it from the adapter
                self.tower = TowerSite(tower, strategy, None, self.seed, self._passed)
            strategy.initialize(self.decoder, self.seed)
        self._apply()

    @property
    def _sites(self) -> list[DecoderSite | TowerSite]:
        return [site for site in (self.tower, self._at_layers) if site is not None]

    @property
    def _applied(self) -> bool:
        """Whether no warning is due when the reduction is removed."""
        return all(site.applied for site in self._sites)

    @_applied.setter
    def _applied(self, value: bool) -> None:
        for site in self._sites:
            site.applied = value

    def _apply(self) -> None:
        """Puts every hook on, or none: whatever goes wrong, the model stays as it was."""
        try:
            if self._at_layers is not None:
                self._at_layers.apply(self)
            if self.tower is not None:
                self._put_bridge()
                self.tower.apply()
        except BaseException:
            self._take_off()
            raise

    @property
    def _bridge(self) -> TowerBridge | None:
        return None if self._at_layers is None else self._at_layers.config.bridge

    def _put_bridge(self) -> None:
        """Between the tower and a language model that is to get its groups, or every place."""
        if self._at_layers is None or self.adapter is None or self.tower is None:
            return
        module = self.adapter.tower_module(self._at_layers.base)
        expanded = self.tower.strategy.tower == "expanded"
        self._at_layers.bridged(TowerBridge(module, self.tower.tower, expanded))

    def _passed(self, merged: Merged) -> None:
        if self._bridge is not None:
            self._bridge.passed(merged)

    def _take_off(self) -> list[DecoderSite | TowerSite]:
        """Takes every hook off; the sites that had some."""
        if self._bridge is not None:
            self._bridge.remove()
        return [site for site in self._sites if site.remove()]

    # -- what a caller reads -------------------------------------------------------------------

    @property
    def stops(self) -> tuple[Stop, ...]:
        """Where tokens are reduced, and to which share of the original."""
        if self._at_layers is not None:
            return tuple(self._at_layers.config.stops.values())
        return self._inside.stops

    @property
    def progress(self) -> float:
        """How much of training is done, 0 to 1; schedulers may depend on it."""
        return 1.0 if self._at_layers is None else self._at_layers.progress

    @progress.setter
    def progress(self, value: float) -> None:
        if self._at_layers is not None:
            self._at_layers.progress = value

    @property
    def report(self) -> Any:
        """Tokens per layer, FLOPs and cache bytes of the latest prompt.

        A `Report`; of a plain vision encoder an `EncoderReport` of the latest pass.
        """
        if self._at_layers is None:
            return self._inside.report
        report, tower = self._at_layers.report, self.tower
        return report if tower is None or not tower.ran else replace(report, tower=tower.report)

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """`{layer: [indices per sample]}` of the latest prompt, ascending, counted at layer 0."""
        return self._prompt.indices()

    @property
    def plans(self) -> dict[int, Plan]:
        """The plan of every stop of the latest prompt; of a plain encoder, of every layer."""
        return self._inside.plans if self._at_layers is None else self._prompt.plans

    @property
    def pictures(self) -> list[list[Picture]]:
        """Per sample, the pictures of the latest prompt: where each visual token lies."""
        return self._prompt.pictures

    @property
    def places(self) -> list[list[Picture]]:
        """The name of `pictures` in version 0.1."""
        warn_once("Reduction.places is called Reduction.pictures from version 0.2 on")
        return self.pictures

    @property
    def group(self) -> Tensor:
        """(n, o) for every token of the tower, the last layer's that it is in (latest pass)."""
        return self._inside.group

    @property
    def size(self) -> Tensor:
        """(n, k) how many of its first tokens each of the tower's last represents (latest pass)."""
        return self._inside.size

    def counts(self, tokens: int) -> tuple[int, ...]:
        """Tokens after each layer of a tower that begins with so many; nothing runs."""
        return self._inside.counts(tokens)

    @property
    def _inside(self) -> TowerSite:
        if self.tower is None:
            raise BadOption(f"{self.strategy} merges nothing inside the vision tower here")
        return self.tower

    @property
    def _prompt(self) -> Record:
        return self._language("which has no prompts").latest

    def _language(self, why: str) -> DecoderSite:
        if self._at_layers is None:
            raise BadOption(f"this reduction is inside a plain vision encoder, {why}")
        return self._at_layers

    # -- what a caller does --------------------------------------------------------------------

    @contextmanager
    def visual(self, mask: Tensor, pictures: list[Picture] | None = None) -> Iterator[Reduction]:
        """Marks the visual positions of what the model is given inside the block.

        Args:
            mask: (b, l) bool over the full sequence, cached tokens included; tokens after it
                (generated ones) are text. Beams may repeat its rows.
            pictures: geometry of the marked tokens in reading order; a square per sample if None.

        Raises:
            TypeError: a mask that is not a 2-D bool tensor.
        """
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.dtype.is_floating_point:
            raise Incompatible("the visual mask must be a bool tensor of shape (samples, sequence)")
        with self._marks.marked(mask.bool(), pictures or []):
            yield self

    @contextmanager
    def labels(self, labels: Tensor) -> Iterator[Reduction]:
        """Says which tokens are answers, to training that computes the loss outside the model.

        Passes inside the block that are given no labels choose their tokens as if they had these:
        the tokens right before the answers ask, and no choice depends on an answer. Nothing else
        changes; the model returns no loss.

        Args:
            labels: (b, l) ids, -100 where nothing is to be predicted.

        Raises:
            TypeError: labels that are not a 2-D tensor of whole numbers.
        """
        if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.dtype.is_floating_point:
            raise Incompatible("labels must be a tensor of ids of shape (samples, sequence)")
        with self._marks.labelled(labels):
            yield self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The strategy's own parameters, for an optimiser; none unless it is a learned one."""
        if isinstance(self.strategy, nn.Module):
            yield from self.strategy.parameters()

    @property
    def _marks(self) -> Marks:
        wiring = self._language("where nothing is marked").wiring
        assert wiring is not None  # made with the reduction
        return wiring.marks

    def remove(self) -> None:
        """Takes every hook off: the model is as it was. Warns when nothing was ever reduced."""
        for site in self._take_all_off():  # before any warning, which may be an error
            if site.asks and not site.applied:
                said = f"the reduction was removed without having reduced anything: {site.SILENT}"
                warnings.warn(said, ReductionWarning, stacklevel=2)

    def take_along(self, other: Reduction) -> None:
        """Has another reduction go with this one, such as that of a reference model.

        It is taken off when this one is, and applied again where a block applies this one again.
        """
        self._companions.append(other)

    def _take_all_off(self) -> list[DecoderSite | TowerSite]:
        off = self._take_off()
        for other in self._companions:
            off += other._take_all_off()
        return off

    def _apply_again(self) -> None:
        """Where it was removed before; and so what goes along."""
        if any(site.on for site in self._sites):
            return
        self._applied = False
        self._apply()
        try:
            for other in self._companions:
                other._apply_again()
        except BaseException:
            self._take_all_off()
            raise

    def __enter__(self) -> Reduction:
        self._apply_again()
        self._blocks += 1
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:  # the error says enough
            self._applied = True
        self._blocks -= 1
        if self._blocks:
            return
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Reduction:
        return self

    def __repr__(self) -> str:
        state = "" if any(site.on for site in self._sites) else ", removed"
        return (
            f"Reduction({self.strategy}, {self.scheduler}, positions={self.positions!r}, "
            f"stops={[(s.layer, s.keep) for s in self.stops]}{state})"
        )

    def save(self, directory: Any) -> Any:
        """Writes the reduction next to a checkpoint, to be re-applied by `tokenreduce.load`."""
        return checkpoint.save(self.recipe, self.model, directory)


def _encoder_site(model: nn.Module, recipe: Recipe) -> TowerSite:
    """The site inside a plain vision encoder."""
    strategy, tower = recipe.strategy, encoder_tower(model)
    assert tower is not None  # `reduce` found one
    if not isinstance(strategy, TowerStrategy):
        raise Incompatible(
            f"{type(strategy).__name__} reduces at the input of decoder layers, and "
            f"{type(model).__name__} has none: inside a vision encoder a strategy must be a "
            "TowerStrategy, such as 'tome'"
        )
    return TowerSite(tower, strategy, recipe.scheduler, recipe.seed)


def reduce(
    model: nn.Module,
    strategy: str | Strategy | Recipe,
    scheduler: str | Scheduler | None = None,
    *,
    adapter: str | Adapter | None = None,
    positions: Positions | None = None,
    logits: Logits | None = None,
    seed: int | None = None,
    min_tokens: int | None = None,
) -> Reduction:
    """Reduces the visual tokens of `model` from now on, until `remove()` or the end of the block.

    The same call serves inference and training. The model's weights, config, forward and cache
    class stay what they were; hooks do the work.

    Args:
        model: a transformers vision-language model or causal LM, also wrapped by PEFT or DDP; or a
            plain vision encoder (CLIP, SigLIP, ViT, DeiT, timm's VisionTransformer), whose layers
            then merge.
        strategy: which tokens stay: a registered name, or an instance; or a `Recipe`, which has
            all that follows as well. An option that is given next to a recipe wins; None leaves it
            as the recipe has it.
        scheduler: where and how many; None means the strategy's own.
        adapter: how the family is read; None finds it by `config.model_type`.
        positions: `"keep"` the original position ids or `"compact"` them after every stop; None
            means the strategy's own rule where the family defines it, else `"keep"`.
        logits: `"full"` returns logits for every position; `"text"` only for the positions that
            text needs (text tokens, and the token before each), left-padded, without the cost of
            the others; the loss is the same. Where that would leave nothing out they are full.
            None is `"full"`.
            Training without labels is refused with `"text"`: a loss outside the model would
            compare other positions.
        seed: for strategies that draw; None is 0.
        min_tokens: samples with fewer visual tokens in a pass are left as they are, and the
            report says so: below some number choosing costs more than it saves. None is 0.

    Raises:
        KeyError: an unknown strategy, scheduler or adapter name.
        TypeError: a strategy whose evidence the adapter cannot measure, or an object of another
            kind.
        ContractError: a model or a release of transformers that is not what the engine relies on.
        ValueError: an unsupported family, a layer beyond the model, positions that are not
            defined for the family, or a model that is already reduced.
    """
    if not isinstance(model, nn.Module):
        raise Incompatible(
            f"reduce() takes a model that is loaded, not {model!r}: load it first, such as with "
            "transformers' AutoModelForImageTextToText.from_pretrained(...)"
        )
    recipe = Recipe.parse(strategy)
    if scheduler is not None:
        recipe = replace(recipe, scheduler=_instance(scheduler, schedulers, Scheduler))
    options = {"positions": positions, "logits": logits, "seed": seed, "min_tokens": min_tokens}
    given = {name: value for name, value in options.items() if value is not None}
    recipe = replace(recipe, **given)  # type: ignore[arg-type]
    adapter = recipe.adapter if adapter is None else adapter
    if adapter is None and encoder_tower(unwrap(model)) is not None:
        if recipe.positions is not None or recipe.logits != "full" or recipe.min_tokens:
            raise BadOption(
                "positions, logits and min_tokens are of a language model, which a plain vision "
                "encoder does not have"
            )
        return Reduction(model, recipe)
    reader = _reader(unwrap(model), adapter)
    check_compatible(recipe.strategy, reader, unwrap(model))
    rule = check_options(recipe, reader)
    known = {"scheduler": recipe.schedule, "positions": rule, "adapter": reader}
    return Reduction(model, replace(recipe, **known))  # type: ignore[arg-type]


def load(model: nn.Module, directory: str | PathLike[str]) -> Reduction:
    """Applies the reduction that was saved in `directory` to `model`, as `reduce()` does.

    Raises:
        FileNotFoundError: the folder holds no such file, or not the weights that it names.
        ValueError: a broken or newer file, a name that is not registered, a model of another
            family or depth than the reduction was made for, or weights that are not those that
            were saved with it or do not fit the model.
    """
    plugins.load()
    return reduce(model, checkpoint.read(model, directory))


def remove(model: nn.Module) -> bool:
    """Removes the reductions that are on `model`, also where the objects are no longer held.

    Args:
        model: the model that `reduce()` was given, or any module that has it inside.

    Returns:
        Whether there was one.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise Incompatible(f"remove() takes the model that reduce() was given, not {model!r}")
    owners = {id(owner): owner for part in model.modules() for owner in owners_of(part)}
    for owner in owners.values():
        owner.remove()
    return bool(owners)


def _reader(model: nn.Module, adapter: str | Adapter | None) -> Adapter:
    """The adapter that reads `model`, once everything that the engine relies on was checked."""
    check_layers(model)
    if adapter is None:
        reader = adapter_for(model)
    else:
        reader = _instance(adapter, adapters, Adapter)
        if reason := reader.unsupported_reason(model):
            raise BadOption(f"the {type(reader).__name__} adapter cannot read this model: {reason}")
    check_model(reader, model)
    return reader


def _instance(given: Any, registry: Any, kind: type) -> Any:
    if isinstance(given, str):
        return registry.build(given)
    if isinstance(given, kind):
        return given
    raise Incompatible(
        f"a {registry.kind} is a registered name or an instance, not {given!r} "
        f"(known names: {', '.join(registry)})"
    )
