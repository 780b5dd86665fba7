"""Measures a model under a schedule against itself without one, on a set of prompts.

Shapes: b samples of a batch, t tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreduce.adapter import adapter_for, unwrap
from tokenreduce.checks import integer
from tokenreduce.data.batching import Collator
from tokenreduce.errors import BadOption
from tokenreduce.evaluation.divergence import jensen_shannon, kullback_leibler
from tokenreduce.presets import schedule_of
from tokenreduce.profiling.cells import Measurement
from tokenreduce.profiling.forcing import forced_logits, greedy_answers
from tokenreduce.profiling.prices import CostTable, Stops
from tokenreduce.profiling.prompts import Prompt
from tokenreduce.reduction import reduce
from tokenreduce.schedulers import Single
from tokenreduce.strategies.stride import Stride
from tokenreduce.strategy import Positions, Strategy, TowerStrategy, strategies

Rows = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True)
class _Reference:
    """The whole model's answers to the prompts `at`, and (b, t, V) their log-probabilities."""

    at: list[int]
    answers: list[tuple[int, ...]]
    logs: Tensor


class ScheduleEvaluator:
    """Measures schedules of one strategy on one model.

    The whole model's log-probabilities stay in the machine's memory: prompts x tokens x vocabulary
    x 4 bytes.

    Args:
        model: ready for inference, not reduced.
        processor: of the model.
        prompts: what it is measured on.
        strategy: a registered name, or an instance.
        positions: as for `reduce`.
        seed: of the reduction of the first batch; every other has one of its own, one higher. A
            strategy that draws the same tokens for all prompts is so judged by several draws.
        draws: how often all batches are measured, with seeds of their own; the mean counts. One is
            enough for a strategy that draws nothing.
        tokens: of an answer that are compared, at most.
        batch: prompts at once, of similar length.
        convention: of FLOPs.
        min_tokens: as for `reduce`.

    Raises:
        ValueError: a strategy that reduces nothing, or not inside the language model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompts: Sequence[Prompt],
        strategy: str | Strategy,
        positions: Positions | None = None,
        seed: int = 0,
        draws: int = 1,
        tokens: int = 6,
        batch: int = 16,
        convention: str = "matmul",
        min_tokens: int = 0,
    ) -> None:
        self.model, self.prompts = model, list(prompts)
        self.strategy: Strategy = (
            strategies.build(strategy) if isinstance(strategy, str) else strategy
        )
        self.positions, self.seed, self.convention = positions, seed, convention
        self.draws = integer(draws, "draws", least=1)
        self.min_tokens = min_tokens
        self.tokens, self.batch = (
            integer(tokens, "tokens", least=1),
            integer(batch, "batch", least=1),
        )
        self._collate = Collator(processor, side="left")
        tower = isinstance(self.strategy, TowerStrategy) and self.strategy.tower is not None
        if not self.strategy.reduces or tower:
            raise BadOption(
                f"{type(self.strategy).__name__} drops no tokens at decoder layers: there is no "
                "stop to profile"
            )

    @cached_property
    def prices(self) -> CostTable:
        """What schedules cost on these prompts."""
        counts: list[tuple[int, int]] = []
        model = unwrap(self.model)
        for at in self._batches(range(len(self.prompts))):
            with reduce(self.model, Stride(), Single(layer=0, keep=1.0)) as reduction:
                with torch.inference_mode():
                    self.model(**self._inputs(at), logits_to_keep=1)
                report = reduction.report
            counts += zip(report.visual_tokens, report.text_tokens, strict=True)
        config = adapter_for(model).decoder(model).config
        return CostTable(config, counts, self.convention, self.min_tokens)

    @property
    def pictures(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(n,) which picture each prompt is about."""
        return np.array([prompt.picture for prompt in self.prompts])

    def measure(self, stops: Stops) -> Measurement:
        """The model under a schedule, compared with itself without one."""
        started = time.time()
        rounds = [self._round(stops, number) for number in range(self.draws if stops else 1)]
        rows = {key: np.mean([found[key] for found in rounds], axis=0) for key in rounds[0]}

        def mean(key: str) -> float | None:
            known = rows[key][~np.isnan(rows[key])]
            return float(known.mean()) if len(known) else None

        each = {
            key: [float(f"{x:.4g}") for x in rows[key]]
            for key in ("jsd", "right")
            if mean(key) is not None
        }
        if any(np.isnan(rows["right"])):
            each.pop("right", None)
        return Measurement(
            stops=stops,
            jsd=mean("jsd") or 0.0,
            kl=mean("kl") or 0.0,
            same=mean("same") or 0.0,
            right=mean("right"),
            nll=mean("nll"),
            seconds=round(time.time() - started, 2),
            each=each,
        )

    def fingerprint(self) -> dict[str, str]:
        """Short sums of the weights and of the prompts, which change with either."""
        weights, asked = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
        for name, value in unwrap(self.model).state_dict().items():
            some = value.detach().flatten()[:64].cpu()
            weights.update(f"{name} {tuple(value.shape)} {some.tolist()}".encode())
        for prompt in self.prompts:
            asked.update(f"{prompt.inputs['input_ids'].tolist()} {prompt.given}".encode())
            for key in sorted(set(prompt.inputs) - {"input_ids"}):
                value = prompt.inputs[key]
                asked.update(f"{key} {tuple(value.shape)} {float(value.sum()):.6g}".encode())
        return {"weights": weights.hexdigest(), "prompts": asked.hexdigest()}

    def _round(self, stops: Stops, number: int) -> Rows:
        """(n,) of every measure, for the seeds of one draw."""
        n = len(self.prompts)
        rows: Rows = {key: np.full(n, np.nan) for key in ("jsd", "kl", "same", "right", "nll")}
        references, others = self._references, self._others  # of the model as it is
        start = self.seed + number * (len(references) + len(others))
        for seed, reference in enumerate(references, start):
            logs = self._logs(stops, seed, reference.at, reference.answers)
            self._compare(rows, reference, logs)
        for seed, at in enumerate(others, start + len(references)):
            answers = [self.prompts[i].given[: self.tokens] for i in at]
            logs = self._logs(stops, seed, at, answers)
            for row, (i, given) in enumerate(zip(at, answers, strict=True)):
                rows["right"][i], rows["nll"][i] = _says(logs[row], given), _nll(logs[row], given)
        return rows

    def _compare(self, rows: Rows, reference: _Reference, logs: Tensor) -> None:
        """Notes what (b, t, V) log-probabilities say of a batch along its own answers."""
        full = reference.logs.to(logs.device)
        apart = {"jsd": jensen_shannon(full, logs), "kl": kullback_leibler(full, logs)}
        for row, (i, answer) in enumerate(zip(reference.at, reference.answers, strict=True)):
            for key, values in apart.items():
                rows[key][i] = float(values[row, : len(answer)].mean())
            if np.isnan(rows["jsd"][i]):
                raise BadOption(
                    f"the model's logits are no numbers (NaN) for prompt {i}: use model.dtype="
                    "float32, or look for what overflows"
                )
            rows["same"][i] = _says(logs[row], answer)
            given = self.prompts[i].given[: self.tokens]
            if given and answer[: len(given)] == given:
                rows["right"][i] = _says(logs[row], given)
                rows["nll"][i] = _nll(logs[row], given)

    def _logs(
        self, stops: Stops, seed: int, at: Sequence[int], answers: Sequence[tuple[int, ...]]
    ) -> Tensor:
        """(b, t, V) log-probabilities before every token of the answers, under a schedule."""
        how: Any = {"positions": self.positions, "seed": seed, "min_tokens": self.min_tokens}
        reduced = reduce(self.model, self.strategy, schedule_of(stops), **how) if stops else None
        with reduced or nullcontext():
            logits = forced_logits(self.model, self._inputs(at), answers)
        return logits.float().log_softmax(dim=-1)

    @cached_property
    def _references(self) -> list[_Reference]:
        found = []
        for at in self._batches(range(len(self.prompts))):
            answers, logits = greedy_answers(self.model, self._inputs(at), self.tokens)
            found.append(_Reference(at, answers, logits.float().log_softmax(dim=-1).cpu()))
        return found

    @cached_property
    def _others(self) -> list[list[int]]:
        """Prompts whose right answer is not how the whole model's begins: asked for by itself."""
        own = {i: a for r in self._references for i, a in zip(r.at, r.answers, strict=True)}
        given = {i: prompt.given[: self.tokens] for i, prompt in enumerate(self.prompts)}
        return self._batches([i for i, g in given.items() if g and own[i][: len(g)] != g])

    def _batches(self, indices: Sequence[int]) -> list[list[int]]:
        order = sorted(indices, key=lambda i: len(self.prompts[i].inputs["input_ids"]))
        return [order[i : i + self.batch] for i in range(0, len(order), self.batch)]

    def _inputs(self, at: Sequence[int]) -> Mapping[str, Tensor]:
        batch = self._collate([dict(self.prompts[i].inputs) for i in at])
        device, dtype = self.model.device, self.model.dtype
        return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in batch.items()}


def _says(logs: Tensor, answer: tuple[int, ...]) -> bool:
    """Whether greedy decoding gives the answer: its tokens are the likeliest, one by one."""
    return logs[: len(answer)].argmax(dim=-1).tolist() == list(answer)


def _nll(logs: Tensor, answer: tuple[int, ...]) -> float:
    chosen = torch.tensor(answer, device=logs.device)[:, None]
    return float(-logs[: len(answer)].gather(1, chosen).mean())
