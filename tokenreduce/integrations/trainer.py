"""A reduction inside `transformers.Trainer` and what is built on it (TRL's `SFTTrainer`).

    reduction = tr.reduce(model, "pyramid_drop")
    trainer = Trainer(model=model, ...)
    follow(trainer, reduction)
    trainer.train()

The first line alone trains with reduced tokens. `follow` adds what only a trainer knows: schedulers
see how far training is, what the reduction does goes to the logs, the reduction is saved
with every checkpoint for `tokenreduce.load`, it gets the labels that a trainer keeps from the model
to compute a loss of its own, and the frozen model that a preference is measured against
(TRL's `DPOTrainer`) is reduced alike.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tokenreduce.adapter import unwrap
from tokenreduce.engine.hooks import owners_of
from tokenreduce.errors import BadOption, ReductionWarning
from tokenreduce.learning.strategy import LearnedStrategy
from tokenreduce.reduction import Reduction, reduce
from tokenreduce.report import Report

PREFIX = "tokenreduce/"
"""In front of every name in the logs."""


@dataclass
class Tally:
    """Sums over the forward passes since the last log.

    Attributes:
        tokens: text and visual tokens, without padding.
        visual_in, visual_out: visual tokens in front of the first layer and in the last.
        visual_layers, visual_full: visual tokens summed over layers, reduced and not.
        flops, flops_full: of the decoder's forward passes (`Report.flops`).
    """

    tokens: float = 0.0
    visual_in: float = 0.0
    visual_out: float = 0.0
    visual_layers: float = 0.0
    visual_full: float = 0.0
    flops: float = 0.0
    flops_full: float = 0.0

    def add(self, report: Report) -> None:
        """Counts one forward pass."""
        layers = [sum(row) for row in report.tokens_per_layer]
        visual, text = sum(report.visual_tokens), sum(report.text_tokens)
        self.tokens += text + visual
        self.visual_in += visual
        self.visual_out += layers[-1] - text
        self.visual_layers += sum(layers) - text * len(layers)
        self.visual_full += visual * len(layers)
        self.flops += report.flops
        self.flops_full += report.flops_full

    def summed(self, device: torch.device) -> Tally:
        """The sums over all processes."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return self
        values = torch.tensor(list(vars(self).values()), dtype=torch.float64, device=device)
        torch.distributed.all_reduce(values)
        return Tally(*values.tolist())

    def logs(self, seconds: float) -> dict[str, float]:
        """What goes to the logs, for a stretch of so many seconds."""
        found = {
            "tokens_per_second": self.tokens / max(seconds, 1e-9),
            "visual_tokens_in": self.visual_in,
            "visual_tokens_out": self.visual_out,
            "forward_tflops": self.flops / 1e12,
        }
        if self.visual_full:  # text alone has no share
            found["kept_share"] = self.visual_layers / self.visual_full
            found["flops_share"] = self.flops / self.flops_full
        return {PREFIX + name: value for name, value in found.items()}


class ReductionCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are loose
    """Steps a reduction's schedule with training, logs what it does, saves it with checkpoints.

    Before every optimiser step, `reduction.progress` is the share of `max_steps` that is done;
    after training it is 1, and during evaluations in between (where `follow` has put it): they
    measure what inference will be, and can be compared with each other.

    Logged at every log of training, over all processes since the last one: `tokens_per_second`
    (text and visual, before the reduction), `visual_tokens_in` and `visual_tokens_out` (in front of
    the first layer, and in the last), `kept_share` (visual tokens, mean over layers),
    `forward_tflops` and `flops_share` of the decoder. Each name begins with `tokenreduce/`.

    Callbacks of `report_to` that run before this one do not see these numbers: `follow(trainer,
    reduction)` puts it first.

    Attributes:
        reduction: of the model that is trained.
        reference: of the frozen model that it is compared with, where the trainer has one.
    """

    def __init__(self, reduction: Reduction, reference: Reduction | None = None) -> None:
        self.reduction = reduction
        self.reference = reference
        self._tally = Tally()
        self._since = self._ended = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts to count."""
        self._tally = Tally()
        self._since = self._ended = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the schedule how far training is."""
        self.advance(state.global_step / max(state.max_steps, 1))

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts a micro-batch."""
        self._tally.add(self.reduction.report)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts the last micro-batch of a step."""
        self._tally.add(self.reduction.report)
        self._ended = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds the numbers to the logs of training."""
        if logs is None or "loss" not in logs:
            return  # of an evaluation, or of the whole training
        now = time.monotonic()
        found = self._tally.summed(args.device).logs(now - self._since)
        self._tally, self._since, self._ended = Tally(), now, now
        logs.update(found)
        if state.log_history:  # has a copy of the logs already
            state.log_history[-1].update(found)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the reduction into the checkpoint's folder."""
        self._passed()
        if state.is_world_process_zero:
            self.reduction.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the time of an evaluation out."""
        self._passed()

    def _passed(self) -> None:
        """Leaves the time since the last step out of what training took."""
        now = time.monotonic()
        self._since += now - self._ended
        self._ended = now

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From now on the schedule is that of inference."""
        self.advance(1.0)

    def advance(self, progress: float) -> None:
        """Tells both schedules how far training is, from 0 to 1."""
        self.reduction.progress = progress
        if self.reference is not None:
            self.reference.progress = progress


def follow(trainer: Trainer, reduction: Reduction) -> ReductionCallback:
    """Lets a reduction follow the progress of `trainer`, in front of every other callback.

    Labels that the trainer keeps from the model (label smoothing, `compute_loss_func`) are told to
    the reduction, so that what is kept never depends on the answers. The parameters of a learned
    strategy become a group of the trainer's optimiser, unless they are in it already. A reference
    model (`trainer.ref_model`, of TRL's preference trainers) is reduced in the same way, for as
    long as the model is; one that is reduced already stays as it is.

    Warns of a reference that cannot be reduced so, and of one that was asked before it was.

    Returns:
        the callback, already added.

    Raises:
        ValueError: the trainer's model is not the one that is reduced, another reduction is
            followed already, or the trainer compares labels with logits of visual positions, which
            `logits="text"` leaves out.
    """
    if unwrap(trainer.model) is not unwrap(reduction.model):
        raise BadOption(
            f"the trainer trains a {type(unwrap(trainer.model)).__name__} that is not the model "
            "under this reduction: reduce the model that you hand to the trainer"
        )
    callbacks = trainer.callback_handler.callbacks
    if any(isinstance(callback, ReductionCallback) for callback in callbacks):
        raise BadOption("this trainer follows a reduction already")
    if reduction.logits == "text" and (names := _compares(trainer)):
        raise BadOption(
            f"{', '.join(names)} compare(s) labels with the logits of every position, but "
            'logits="text" leaves out those of visual ones: reduce with logits="full"'
        )
    callback = ReductionCallback(reduction, _reference(trainer, reduction))
    callbacks.insert(0, callback)
    trainer.compute_loss = _telling(trainer.compute_loss, reduction)
    trainer.evaluate = _as_at_inference(trainer.evaluate, callback)
    if isinstance(reduction.strategy, LearnedStrategy):
        trainer.create_optimizer = _joining(trainer, reduction.strategy)
    return callback


def _compares(trainer: Trainer) -> list[str]:
    """What of a trainer compares labels with logits, outside the model."""
    found = {
        "label_smoothing_factor": trainer.label_smoother,
        "compute_loss_func": trainer.compute_loss_func,
        # of preferences and rewards: log-probabilities, under a mask of every position
        type(trainer).__name__: True if hasattr(trainer, "ref_model") else None,
    }
    if not trainer.args.prediction_loss_only:
        found["compute_metrics"] = trainer.compute_metrics
        found["preprocess_logits_for_metrics"] = trainer.preprocess_logits_for_metrics
    return [name for name, part in found.items() if part is not None]


def _reference(trainer: Trainer, reduction: Reduction) -> Reduction | None:
    """The same reduction on the frozen model that a trainer compares its model with, if any.

    Trainers load it afresh: unreduced, it would prefer something else before the first step.
    """
    model: Any = getattr(trainer, "ref_model", None)
    asked = bool(getattr(trainer.args, "precompute_ref_log_probs", False))
    if model is None and not (asked and trainer.is_fsdp_enabled):
        return None  # none at all, or the model itself: without its adapters, or before a step
    if model is not None and any(owners_of(part) for part in model.modules()):
        return None  # by the caller
    if asked:
        warnings.warn(
            "precompute_ref_log_probs=True has asked the reference model unreduced: reduce it "
            "before you make the trainer (ref_model=...), or leave that option out",
            ReductionWarning,
            stacklevel=3,
        )
        return None
    alike = type(unwrap(model)) is type(unwrap(reduction.model))
    recipe = reduction.recipe if alike else replace(reduction.recipe, adapter=None)
    try:
        found = reduce(model, recipe)
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"the reference model stays unreduced, and is compared with a reduced one: {error}",
            ReductionWarning,
            stacklevel=3,
        )
        return None
    reduction.take_along(found)
    return found


def _as_at_inference(
    evaluate: Callable[..., Any], callback: ReductionCallback
) -> Callable[..., Any]:
    """A trainer's `evaluate` under the schedule that training leads to."""

    @wraps(evaluate)
    def at_the_end(*args: Any, **kwargs: Any) -> Any:
        before = callback.reduction.progress
        callback.advance(1.0)
        try:
            return evaluate(*args, **kwargs)
        finally:
            callback.advance(before)

    return at_the_end


def _joining(trainer: Trainer, strategy: LearnedStrategy) -> Callable[..., Any]:
    """A trainer's `create_optimizer` that has a strategy's parameters in what it makes."""
    make = trainer.create_optimizer

    @wraps(make)
    def joined(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        strategy.silence_untrained()  # it is about to be trained: nothing to warn of
        own = {id(parameter) for parameter in strategy.parameters()}
        groups = trainer.optimizer.param_groups
        if not any(id(parameter) in own for group in groups for parameter in group["params"]):
            strategy.add_to_optimizer(trainer.optimizer)
        return made

    return joined


def _telling(compute: Callable[..., Any], reduction: Reduction) -> Callable[..., Any]:
    """A trainer's `compute_loss` that tells the reduction the labels of its batch."""

    @wraps(compute)
    def told(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.get("labels")
        if labels is None:
            return compute(model, inputs, *args, **kwargs)
        with reduction.labels(labels):
            return compute(model, inputs, *args, **kwargs)

    return told
