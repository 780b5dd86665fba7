"""The site of a reduction at the inputs of decoder layers: its hooks, its stops, its record.

Shapes: b samples, l sequence.
"""

from __future__ import annotations

import warnings
import weakref
from dataclasses import replace
from typing import Any

from torch import nn

from tokenreduce.cost import shape_of
from tokenreduce.engine.engine_config import EngineConfig
from tokenreduce.engine.sequence import Sequence
from tokenreduce.engine.tower.bridge import TowerBridge
from tokenreduce.engine.wiring import Wiring
from tokenreduce.errors import ReductionWarning
from tokenreduce.report import Record, Report, make_report
from tokenreduce.scheduler import Scheduler, Stop, check_within
from tokenreduce.tower import Part


class DecoderSite:
    """Tokens that are reduced at the inputs of a decoder's layers.

    Args:
        roots: the modules that a caller may call, outermost first.
        base: the multimodal module.
        config: what the engine is set to do; its stops are those of the scheduler.
        scheduler: where and how many.
        only_text: whether logits of visual positions are left out.

    Raises:
        ValueError: a stop beyond the decoder.
    """

    SILENT = (
        "no forward pass had enough visual tokens (mark them with `reduction.visual(mask)` for a "
        "bare decoder)"
    )
    """Why nothing may have been reduced."""

    def __init__(
        self,
        roots: list[nn.Module],
        base: Part,
        config: EngineConfig,
        scheduler: Scheduler,
        only_text: bool,
    ) -> None:
        self.roots, self.base, self.scheduler = roots, base, scheduler
        self.only_text = only_text
        self.config = config
        self.wiring: Wiring | None = None
        self.applied = False
        self._record: Record | None = None
        self.progress = 1.0

    def apply(self, owner: Any) -> None:
        """Puts every hook on, or none.

        Args:
            owner: whose hooks these are, with a `remove()`.

        Raises:
            ValueError: another reduction is on the model.
        """
        self.wiring = Wiring(
            self.roots, self.base, self.config, self.only_text, self._remember, owner
        )

    def remove(self) -> bool:
        """Takes every hook off; False when they were off already."""
        return self.wiring is not None and self.wiring.remove()

    @property
    def on(self) -> bool:
        """Whether its hooks are on."""
        return self.wiring is not None and bool(self.wiring.handles)

    @property
    def asks(self) -> bool:
        """Whether a stop would leave fewer tokens."""
        return self.config.asks

    @property
    def progress(self) -> float:
        """How much of training is done, 0 to 1; schedulers may depend on it."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._configure(stops=self._stops_at(value))
        self._progress = value

    def bridged(self, bridge: TowerBridge) -> None:
        """How many groups there are, the tower says from now on."""
        self._configure(bridge=bridge)
        self.progress = self._progress

    def _stops_at(self, progress: float) -> dict[int, Stop]:
        """The stops by layer, when so much of training is done."""
        config, depth = self.config, len(self.config.decoder.layers)
        stops = self.scheduler.stops(depth, progress) if config.strategy.reduces else ()
        if config.bridge is not None:
            stops = (Stop(0, 1.0),) if config.grouped else ()
        check_within(stops, depth, "a decoder")
        return {stop.layer: stop for stop in stops}

    def _configure(self, **changes: Any) -> None:
        """Changes what the engine is set to do, from the next pass on."""
        self.config = replace(self.config, **changes)
        if self.wiring is not None:
            self.wiring.config = self.config

    @property
    def report(self) -> Report:
        """Tokens per layer, FLOPs and cache bytes of the latest prompt."""
        config, record = self.config, self.latest
        # of the kind that keys and values have: quantised weights are bytes, which these never are
        value = next(p for p in config.decoder.parameters() if p.is_floating_point())
        stops = record.stops
        if config.grouped and any(record.counts):
            share = sum(record.budgets.get(0, record.counts)) / sum(record.counts)
            stops = {0: Stop(0, share)}
        needs = None if config.grouped else config.strategy.needs
        shape, size = shape_of(config.decoder.config), value.element_size()
        return make_report(record, stops, shape, size, config.min_tokens, needs)

    @property
    def latest(self) -> Record:
        """What is known of the latest prompt.

        Raises:
            RuntimeError: there was none.
        """
        if self._record is None:
            raise RuntimeError("no prompt has passed through the model under this reduction")
        return self._record

    def _remember(self, seq: Sequence, cache: Any) -> None:
        config, training = seq.config, self.roots[0].training
        spared = config.spared(seq.counts)
        self.applied = self.applied or seq.reduced or any(spared)  # or was asked not to
        if seq.reduced and (said := config.strategy.untrained_warning(training)):
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
            config.stops,
        )
        earlier = self._record
        if seq.start and earlier is not None and earlier.of(cache):
            record = earlier.join(record)
        elif not seq.counts and (seq.start or (earlier is not None and earlier.in_use())):
            return  # text after a cache that was filled elsewhere, or next to one of pictures
        self._record = record
