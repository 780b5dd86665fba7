"""Runs conditions, each once, whatever other processes work in the same folder."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import tokenreduce as tr
from tokenreduce.cost import shape_of
from tokenreduce.data.items import Item
from tokenreduce.errors import BadOption, in_one_line, is_refused
from tokenreduce.evaluation.asking import Protocol, ask, batches, inputs_of
from tokenreduce.evaluation.bars import Bars
from tokenreduce.evaluation.conditions import Condition, smaller_pictures
from tokenreduce.evaluation.following import following, pairs, spread, times
from tokenreduce.evaluation.records import Row, Store
from tokenreduce.evaluation.shard import Shard
from tokenreduce.inference.loaded import Loaded
from tokenreduce.inference.measure import prefill


@dataclass
class Runner:
    """Answers the same questions under one condition after the other.

    Attributes:
        loaded: the model.
        items: the questions.
        how: how they are put.
        store: where the answers go.
        shard: which part of them this process does.
        timed, runs: prompts whose prefill is timed, and how often each.
        followed: questions whose kept tokens are compared under other words.
        bars: what is seen of it meanwhile.
    """

    loaded: Loaded
    items: Sequence[Item]
    how: Protocol
    store: Store
    shard: Shard
    timed: int = 4
    runs: int = 3
    followed: int = 32
    bars: Bars = field(default_factory=Bars)
    impossible: dict[str, str] = field(default_factory=dict)

    def run(self, condition: Condition, needed: bool = False) -> bool:
        """Answers and measures a condition, unless that is done; whether it can be done at all.

        needed: raises what the model refuses; else it is noted, with the reason.

        Raises:
            ValueError: what is needed is refused, in every process.
        """
        items = condition.questions(self.items)
        reason = self._try(condition, items)
        if reason is None:
            with self._alone(condition.key):
                reason = self._all(condition, items)
        if reason is not None and needed:
            raise BadOption(reason)
        if reason is not None:
            self.impossible[condition.key] = reason
        return reason is None

    def _all(self, condition: Condition, items: Sequence[Item]) -> str | None:
        """Answers every question; or why a process could not, which all are told by a note."""
        if self.shard.first and self._refused(condition):
            self.store.note(condition.key, impossible=None)  # of an earlier run: tried again
        self.shard.wait()  # until the first process has the lock, so that all see the same
        try:
            self._answer(condition, items)
        except (ValueError, TypeError, KeyError) as error:  # of one picture among many
            if not is_refused(error):
                raise
            self.store.note(condition.key, impossible=in_one_line(error))
        self.shard.wait()
        reason = self._refused(condition)
        if reason is None and self.shard.first:
            names = [item.name for item in items]
            if not self.store.complete(condition.key, names):
                self.store.settle(condition.key, names)
            self._measure(condition)
        self.shard.wait()  # until all have read the note: the next run takes it away
        return reason

    def run_smaller(self, tested: Condition) -> str | None:
        """The baseline on pictures, at the FLOPs of a tested condition; None, or why not."""
        rows = list(self.store.answers(tested.key).values())
        share = sum(row["flops"] for row in rows) / sum(row["flops_full"] for row in rows)
        try:
            made: Any = tr.solve(
                shape_of(tr.unwrap(self.loaded.model).config),
                visual=round(statistics.fmean(row["visual"] for row in rows)),
                text=round(statistics.fmean(row["text"] for row in rows)),
                flops=min(share, 1.0),
                rule="single",
                layer=0,
            )
        except ValueError as error:
            if not is_refused(error):
                raise
            return in_one_line(error)
        condition = smaller_pictures(round(made.keep, 4))
        return None if self.run(condition) else self.impossible.pop(condition.key)

    def _refused(self, condition: Condition) -> str | None:
        """Why a process could not answer all questions."""
        found = self.store.conditions().get(condition.key, {})
        return found.get("impossible")

    def _try(self, condition: Condition, items: Sequence[Item]) -> str | None:
        """Why the first question cannot be asked, before any is; None where it can."""
        if not items:
            return f"the data has no {condition.change} of its questions"
        if condition.recipe is None:
            return None
        try:
            inputs, _ = inputs_of(self.loaded, condition, items[:1])
            with condition.reduction(self.loaded)():
                prefill(self.loaded.model, inputs)
        except (ValueError, TypeError, KeyError) as error:
            if not is_refused(error):
                raise
            return in_one_line(error)
        return None

    def shares(self, condition: Condition) -> list[tuple[int, float]]:
        """Where a condition stops, and which share it is to keep there."""
        if condition.recipe is None:
            return []
        depth = shape_of(tr.unwrap(self.loaded.model).config).layers
        return [(stop.layer, stop.keep) for stop in condition.recipe.schedule.stops(depth)]

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One run at a time works on a condition; its other processes follow the first."""
        lock: AbstractContextManager[Any] = (
            self.store.locked(key) if self.shard.first else nullcontext()
        )
        with lock:
            yield

    def _answer(self, condition: Condition, items: Sequence[Item]) -> None:
        done = self.store.answers(condition.key)
        own = batches(items, self.how.batch)[self.shard.rank :: self.shard.world]
        open_ = [batch for batch in own if any(item.name not in done for item in batch)]
        total = sum(map(len, own))
        with self.bars.bar(condition, total, total - sum(map(len, open_))) as bar:
            for batch in open_:
                rows: list[Row] = list(ask(self.loaded, condition, batch, self.how))
                self.store.append(condition.key, self.shard.rank, rows)
                bar.update(len(batch))

    def _measure(self, condition: Condition) -> None:
        """Times the prefill, and watches whether the choice follows the text; notes both."""
        note = self.store.conditions().get(condition.key, {})
        if "condition" not in note:
            self.store.note(
                condition.key, condition=condition.to_dict(), shares=self.shares(condition)
            )
        if condition.recipe is None:
            return
        if self.timed and "prefill" not in note:
            found = times(self.loaded, condition, self.items[: self.timed], self.runs)
            self.store.note(condition.key, prefill=found)
        if self.followed and "following" not in note and condition.recipe.strategy.reduces:
            others = pairs(self.items)
            asked = spread(self.items, others, self.followed)
            rows = following(self.loaded, condition, asked, others)
            self.store.note(condition.key, following=rows)
