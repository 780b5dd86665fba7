"""`reduce()`: puts a strategy and a scheduler to work on a live model, and takes them off again.

This is the only code with state: hook handles, training progress, and the record of the latest
prompt. Everything else travels with one forward pass or lives with its KV cache.
Shapes: b samples, l sequence.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

from torch import Tensor, nn

from tokenreduce import checkpoint, plugins
from tokenreduce.adapter import Adapter, adapter_for, adapters, unwrap
from tokenreduce.cost import shape_of
from tokenreduce.encoder import EncoderReduction
from tokenreduce.engine.contract import check_layers, check_model
from tokenreduce.engine.hooks import owners_of, parameters
from tokenreduce.engine.inside import Inside
from tokenreduce.engine.sequence import Sequence
from tokenreduce.engine.spec import EngineConfig
from tokenreduce.engine.wiring import Wiring
from tokenreduce.errors import BadOption, Incompatible, ReductionWarning
from tokenreduce.fit import check_fit, check_options
from tokenreduce.geometry import Picture
from tokenreduce.learned import LearnedStrategy, complaint
from tokenreduce.recipe import Logits, Recipe
from tokenreduce.report import Record, Report, make_report
from tokenreduce.scheduler import Scheduler, Stop, schedulers
from tokenreduce.strategy import Positions, Strategy, TowerStrategy
from tokenreduce.tokens import Plan
from tokenreduce.tower import Part, encoder_tower


class Reduction:
    """A strategy and a scheduler at work on one model. A context manager; made by `reduce()`."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, adapter: Adapter, positions: Positions
    ) -> None:
        self.model, self.adapter, self.positions = model, adapter, positions
        strategy = self.strategy = recipe.strategy
        self.scheduler = recipe.schedule
        self.logits, self.seed, self.min_tokens = recipe.logits, recipe.seed, recipe.min_tokens
        core = unwrap(model)
        self.decoder = adapter.decoder(core)
        names = parameters(self.decoder.layers[0])
        self._config = EngineConfig(
            adapter,
            self.decoder,
            strategy,
            {},
            positions,
            self.seed,
            names,
            min_tokens=self.min_tokens,
        )
        self._progress = 1.0
        self._config = replace(self._config, stops=self._stops_at(1.0))
        self._record: Record | None = None
        self._applied = False
        if isinstance(strategy, LearnedStrategy):
            strategy.begin(self.decoder, self.seed)
        self._inside: EncoderReduction | None = None
        self._wiring: Wiring
        self._apply()

    def _apply(self) -> None:
        """Puts every hook on, or none: whatever goes wrong, the model stays as it was."""
        core = unwrap(self.model)
        roots = [self.model] if core is self.model else [self.model, core]
        base = self.adapter.base(core)
        only_text = self.logits == "text"
        self._wiring = Wiring(roots, base, self._config, only_text, self._remember, self)
        strategy = self.strategy
        if isinstance(strategy, TowerStrategy) and strategy.tower is not None:
            try:
                self._inside = self._shorten_tower(base, strategy)
            except BaseException:
                self._wiring.remove()
                raise

    # -- what a caller reads -------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """With what the model is reduced: nothing in it is left to be found."""
        options = (self.positions, self.logits, self.seed, self.min_tokens, self.adapter)
        return Recipe(self.strategy, self.scheduler, *options)

    @property
    def stops(self) -> tuple[Stop, ...]:
        """Where tokens are reduced, and to which share of the original."""
        return tuple(self._config.stops.values())

    @property
    def progress(self) -> float:
        """How much of training is done, 0 to 1; schedulers may depend on it."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._configure(stops=self._stops_at(value))
        self._progress = value

    def _stops_at(self, progress: float) -> dict[int, Stop]:
        """The stops by layer, when so much of training is done."""
        depth = len(self.decoder.layers)
        stops = self.scheduler.stops(depth, progress) if self.strategy.reduces else ()
        if self._config.inside is not None:  # how many groups there are, the tower says
            stops = (Stop(0, 1.0),) if self._config.grouped else ()
        for stop in stops:
            if not 0 <= stop.layer < depth:
                raise BadOption(
                    f"layer {stop.layer} is outside a decoder of {depth} layers: "
                    f"use 0 to {depth - 1}"
                )
        return {stop.layer: stop for stop in stops}

    def _configure(self, **changes: Any) -> None:
        """Changes what the engine is set to do, from the next pass on."""
        self._config = replace(self._config, **changes)
        self._wiring.config = self._config

    @property
    def report(self) -> Report:
        """Tokens per layer, FLOPs and cache bytes of the latest prompt."""
        # of the kind that keys and values have: quantised weights are bytes, which these never are
        value = next(p for p in self.decoder.parameters() if p.is_floating_point())
        shape = shape_of(self.decoder.config)
        record, stops = self._latest(), dict(self._config.stops)
        if self._config.grouped and any(record.counts):
            share = sum(record.budgets.get(0, record.counts)) / sum(record.counts)
            stops = {0: Stop(0, share)}
        needs = None if self._config.grouped else self.strategy.needs
        report = make_report(record, stops, shape, value.element_size(), self.min_tokens, needs)
        inside = self._inside
        return report if inside is None or not inside.ran else replace(report, tower=inside.report)

    @property
    def tower(self) -> EncoderReduction | None:
        """What is merged inside the vision tower: plans, groups, sizes; None where nothing is."""
        return self._inside

    @property
    def kept(self) -> dict[int, list[Tensor]]:
        """`{layer: [indices per sample]}` of the latest prompt, ascending, counted at layer 0."""
        return self._latest().indices()

    @property
    def plans(self) -> dict[int, Plan]:
        """The plan of every stop of the latest prompt."""
        return self._latest().plans

    @property
    def places(self) -> list[list[Picture]]:
        """Per sample, the pictures of the latest prompt: where each visual token stands."""
        return self._latest().pictures

    def _latest(self) -> Record:
        if self._record is None:
            raise RuntimeError("no prompt has passed through the model under this reduction")
        return self._record

    # -- what a caller does --------------------------------------------------------------------

    @contextmanager
    def visual(self, mask: Tensor, pictures: list[Picture] | None = None) -> Iterator[Reduction]:
        """Marks the visual positions of what the model is given inside the block.

        Args:
            mask: (b, l) bool over the full sequence, cached tokens included; tokens behind it
                (generated ones) are text. Beams may repeat its rows.
            pictures: geometry of the marked tokens in reading order; a square per sample if None.

        Raises:
            TypeError: a mask that is not a 2-D bool tensor.
        """
        if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.dtype.is_floating_point:
            raise Incompatible("the visual mask must be a bool tensor of shape (samples, sequence)")
        with self._wiring.marks.marked(mask.bool(), pictures or []):
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
        with self._wiring.marks.labelled(labels):
            yield self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The strategy's own parameters, for an optimiser; none unless it is a learned one."""
        if isinstance(self.strategy, LearnedStrategy):
            yield from self.strategy.parameters()

    def remove(self) -> None:
        """Takes every hook off: the model is as it was. Warns when nothing was ever reduced."""
        asked = any(stop.keep < 1 for stop in self._config.stops.values())
        if self._inside is not None:
            self._inside.remove()
            assert self._config.inside is not None  # set with it
            self._config.inside.remove()
        if self._wiring.remove() and asked and not self._applied:
            warnings.warn(
                "the reduction was removed without having reduced anything: no forward pass had "
                "enough visual tokens (mark them with `reduction.visual(mask)` for a bare decoder)",
                ReductionWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Reduction:
        if not self._wiring.handles:  # removed before: a second block applies it again
            self._applied = False
            self._apply()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._applied = True  # the error says enough
        if self._inside is not None:
            self._inside.__exit__(kind, error, trace)
        self.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Reduction:
        return self

    def __repr__(self) -> str:
        state = "" if self._wiring.handles else ", removed"
        return (
            f"Reduction({self.strategy}, {self.scheduler}, positions={self.positions!r}, "
            f"stops={[(s.layer, s.keep) for s in self.stops]}{state})"
        )

    def save(self, directory: Any) -> Any:
        """Writes the reduction beside a checkpoint, to be re-applied by `tokenreduce.load`."""
        return checkpoint.save(self.recipe, self.model, directory)

    def _shorten_tower(self, base: Part, strategy: TowerStrategy) -> EncoderReduction:
        """Merges inside the vision tower, and at layer 0 where its groups come once."""
        tower = self.adapter.tower(base)
        assert tower is not None  # `reduce` asked the adapter
        module = self.adapter.tower_module(base)
        within = Inside(module, tower, strategy.tower == "spread")
        try:
            found = EncoderReduction(module, tower, strategy, None, self.seed, within.passed)
        except ValueError:
            within.remove()
            raise
        self._configure(inside=within)
        self.progress = self._progress
        return found

    def _remember(self, seq: Sequence, cache: Any) -> None:
        spared = self._config.spared(seq.counts)
        self._applied = self._applied or seq.reduced or any(spared)  # or was asked not to
        if seq.reduced and (said := complaint(self.strategy, self.model.training)):
            warnings.warn(said, ReductionWarning, stacklevel=2)
        blank = (0,) * seq.batch
        record = Record(
            seq.counts or blank,
            seq.texts,
            {stage.layer: stage.kept.counts for stage in seq.stops},
            {stage.layer: (stage.kept.origin, stage.kept.visual_valid) for stage in seq.stops},
            {stage.layer: stage.plan for stage in seq.stops if stage.plan is not None},
            [[] for _ in seq.texts] if seq.prompt is None else seq.prompt.pictures,
            None if cache is None else weakref.ref(cache),
            tuple(n * left for n, left in zip(seq.counts, spared, strict=True)) or blank,
        )
        earlier = self._record
        if seq.start and earlier is not None and earlier.of(cache):
            record = earlier.join(record)
        elif not seq.counts and (seq.start or (earlier is not None and earlier.in_use())):
            return  # text behind a cache that was filled elsewhere, or beside one of pictures
        self._record = record


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
            plain vision encoder (CLIP, SigLIP, ViT, DeiT, timm's VisionTransformer), for which an
            `EncoderReduction` is returned.
        strategy: which tokens stay: a registered name, or an instance; or a `Recipe`, which has
            all that follows as well. An option that is given beside a recipe wins; None leaves it
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
    tower = encoder_tower(unwrap(model)) if adapter is None else None
    if tower is not None:
        if recipe.positions is not None or recipe.logits != "full" or recipe.min_tokens:
            raise BadOption(
                "positions, logits and min_tokens are of a language model, which a plain vision "
                "encoder does not have"
            )
        inside: Any = EncoderReduction(
            unwrap(model), tower, recipe.strategy, recipe.scheduler, recipe.seed
        )
        return inside  # type: ignore[no-any-return]
    reader = _reader(unwrap(model), adapter)
    check_fit(recipe.strategy, reader, unwrap(model))
    return Reduction(model, recipe, reader, check_options(recipe, reader))


def load(model: nn.Module, directory: str | PathLike[str]) -> Reduction:
    """Applies the reduction that was saved in `directory` to `model`, as `reduce()` does.

    Raises:
        FileNotFoundError: the folder holds no such file, or not the weights that it tells of.
        ValueError: a broken or newer file, a name that nobody has registered, a model of another
            family or depth than the reduction was made for, or weights that are not those that
            were saved with it or do not fit the model.
    """
    plugins.load()
    return reduce(model, checkpoint.read(model, directory))


def remove(model: nn.Module) -> bool:
    """Takes off whatever reduction is on `model`, also where nobody holds it any more.

    Args:
        model: the model that `reduce()` was given, or any module that has it inside.

    Returns:
        Whether there was one.
    """
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
        if reason := reader.unfit(model):
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
