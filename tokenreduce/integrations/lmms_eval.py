"""Reductions inside lmms-eval: every model of its own that runs in this process takes settings.

    lmms-eval --model llava_hf --model_args pretrained=...,strategy=fastv,scheduler.keep=0.25 ...

The entry point `lmms_eval.models` names `manifests`. Models keep their names, for tasks choose
their prompts and generation options by `--model`: a reduced model under a name of its own would be
asked other questions than the full one. Without settings in `--model_args` lmms-eval's own class is
made, as if this package were not there. lmms-eval is imported when it asks, never before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from tokenreduce.errors import BadOption
from tokenreduce.integrations.settings import PARTS, Settings, flat_settings, read_settings
from tokenreduce.reduction import Reduction

CONFIG = "reduction_config"
SEED = "reduction_seed"
"""Not `seed`, which models of lmms-eval have themselves."""
KINDS = {"simple": "AVAILABLE_SIMPLE_MODELS", "chat": "AVAILABLE_CHAT_TEMPLATE_MODELS"}
"""The kinds of model classes, and the tables of `lmms_eval.models` that name them."""


def manifests() -> list[Any]:
    """A `ModelManifest` for every model that ships with lmms-eval, under its own name.

    The classes are made when one is asked for: `<this module>.chat__llava_hf`.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    tables = {kind: _table(kind) for kind in KINDS}
    return [
        ModelManifest(
            model_id=name,
            **{
                f"{kind}_class_path": f"{__name__}.{kind}__{name}"
                for kind, table in tables.items()
                if name in table
            },
        )
        for name in sorted(set().union(*tables.values()))
    ]


def __getattr__(name: str) -> Any:
    """The class that a manifest names."""
    kind, mark, model = name.partition("__")
    if not mark or kind not in KINDS or not model:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class(kind, model)


@cache
def _class(kind: str, model: str) -> type:
    named = _table(kind)[model]
    path = named if "." in named else f"lmms_eval.models.{kind}.{model}.{named}"
    module, _, name = path.rpartition(".")
    return with_reduction(getattr(import_module(module), name))


def _table(kind: str) -> Mapping[str, str]:
    table: Mapping[str, str] = getattr(import_module("lmms_eval.models"), KINDS[kind])
    return table


def with_reduction(plain: type) -> type:
    """The class of an lmms-eval model that also takes a reduction's settings, from its own class.

    For models of your own: name the result in the `ModelManifest` of your package.
    """
    name = f"Reduced{plain.__name__}"
    return type(name, (Reduced, plain), {"plain": plain, "__module__": __name__})


def split_settings(arguments: Mapping[str, Any]) -> tuple[Settings | None, dict[str, Any]]:
    """The reduction that model arguments ask for, and the arguments that are the model's own.

    Args:
        arguments: as lmms-eval reads `--model_args`: `reduction_config` is a file, a folder or JSON
            (`read_settings`); or `strategy`, `strategy.<option>`, `scheduler`,
            `scheduler.<option>`, `positions` and `reduction_seed` one by one.

    Returns:
        the settings, None where there are none; and all other arguments.

    Raises:
        ValueError: both ways at once, or settings that cannot be read.
    """
    own, flat = dict(arguments), {}
    for key in arguments:
        part = key.partition(".")[0]
        if key == SEED:
            flat["seed"] = own.pop(key)
        elif part in PARTS and part != "seed":
            flat[key] = own.pop(key)
    config = own.pop(CONFIG, None)
    if config is not None and flat:
        raise BadOption(
            f"{CONFIG} and {', '.join(flat)} are both given: put all of it into one of them"
        )
    if config is not None:
        return read_settings(config if isinstance(config, Mapping) else str(config)), own
    return (flat_settings(flat) if flat else None), own


@dataclass
class PromptTotals:
    """What a reduced model's prompts came to, and the errors that happened inside `generate`.

    Attributes:
        prompts: calls of `generate`.
        visual_in, visual_out: visual tokens in front of the first layer and in the last.
        flops, flops_full: of the decoder's prefill.
        reduced: samples that lost tokens; pictured: those that had any.
        errors: that `generate` raised, and its caller may have swallowed.
    """

    prompts: int = 0
    visual_in: int = 0
    visual_out: int = 0
    flops: int = 0
    flops_full: int = 0
    reduced: int = 0
    pictured: int = 0
    errors: list[Exception] = field(default_factory=list)

    def add(self, reduction: Reduction) -> None:
        """Counts the latest prompt of a reduction."""
        report = reduction.report
        self.visual_in += sum(report.visual_tokens)
        self.visual_out += sum(report.tokens_per_layer[-1]) - sum(report.text_tokens)
        self.flops += report.flops
        self.flops_full += report.flops_full
        self.pictured += sum(n > 0 for n in report.visual_tokens)
        self.reduced += sum(report.applied)

    def numbers(self) -> dict[str, float]:
        """For the logs: visual tokens per prompt and the share of the prefill's FLOPs."""
        n = max(self.prompts, 1)
        return {
            "visual_tokens_in": self.visual_in / n,
            "visual_tokens_out": self.visual_out / n,
            "flops_share": self.flops / self.flops_full if self.flops_full else 1.0,
        }

    def check(self, reduction: Reduction) -> None:
        """Raises what must not pass for an answer.

        Raises:
            RuntimeError: `generate` raised, or pictures were there and nothing was reduced.
        """
        if self.errors:
            raise RuntimeError(
                f"{len(self.errors)} of {self.prompts} prompts failed inside generate(), which "
                f"would have counted as empty answers; the first: {self.errors[0]}"
            ) from self.errors[0]
        if not self.prompts:
            _ = reduction.report  # raises where no prompt came by another way either
        asked = any(stop.keep < 1 for stop in reduction.stops)
        if asked and self.pictured and not self.reduced:
            raise RuntimeError(
                f"none of {self.pictured} prompts with pictures was reduced by {reduction}: they "
                "have too few visual tokens for it"
            )


@contextmanager
def totalled(model: Any, reduction: Reduction) -> Iterator[PromptTotals]:
    """Watches every call of `model.generate` inside the block."""
    totals, generate = PromptTotals(), model.generate

    def through(*args: Any, **kwargs: Any) -> Any:
        totals.prompts += 1
        try:
            found = generate(*args, **kwargs)
        except Exception as error:
            totals.errors.append(error)
            raise
        totals.add(reduction)
        return found

    model.generate = through
    try:
        yield totals
    finally:
        vars(model).pop("generate", None)


class Reduced:
    """What `with_reduction` puts in front of a model class of lmms-eval.

    `generate_until` fails where lmms-eval's own models would go on: an error inside `generate()`
    becomes an empty answer there. It writes what the reduction did to lmms-eval's own log, as
    `visual_tokens_in`, `visual_tokens_out` (per prompt) and `flops_share`.
    """

    plain: Any

    def __init__(self, *args: Any, settings: Settings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reduction = settings.apply(_module_of(self))

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> Any:
        """What lmms-eval calls with `--model_args`.

        Returns:
            an instance of the model's own class where the arguments ask for no reduction.
        """
        from lmms_eval.utils import simple_parse_args_string

        settings, own = split_settings(simple_parse_args_string(arg_string))
        if settings is None:
            return cls.plain.create_from_arg_string(arg_string, additional_config)
        more = {key: x for key, x in (additional_config or {}).items() if x is not None}
        return cls(settings=settings, **own, **more)

    def generate_until(self, requests: list[Any]) -> Any:
        """The model's answers, under the reduction."""
        return self._watched(super().generate_until, requests)  # type: ignore[misc]

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        """The same where a task goes on asking."""
        return self._watched(super().generate_until_multi_round, requests)  # type: ignore[misc]

    def clean(self) -> None:
        """Takes the reduction off before lmms-eval lets the model go."""
        if self.reduction is not None:
            self.reduction.remove()
            self.reduction = None  # type: ignore[assignment]
        super().clean()  # type: ignore[misc]

    def _watched(self, answer: Callable[[list[Any]], Any], requests: list[Any]) -> Any:
        with totalled(_module_of(self), self.reduction) as totals:
            found = answer(requests)
        if requests:
            totals.check(self.reduction)
            _log(totals)
        return found


def _log(totals: PromptTotals) -> None:
    """To lmms-eval's results, and a line on the screen."""
    from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history

    numbers, logged = totals.numbers(), get_logged_metrics_history()
    if logged:  # what the model's own class has just written of its speed
        logged[-1].update(numbers)
    said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    print(f"tokenreduce: {totals.prompts} prompts, {said}", file=sys.stderr)


def _module_of(holder: Any) -> nn.Module:
    """The PyTorch model that an lmms-eval model calls `generate` of."""
    for name in ("model", "_model"):
        found = getattr(holder, name, None)
        if isinstance(found, nn.Module):
            return found
    plain = getattr(holder, "plain", type(holder))
    raise BadOption(
        f"{plain.__module__}.{plain.__name__} holds no PyTorch model in this process (its `model` "
        f"is {getattr(holder, 'model', None)!r}): reductions are for lmms-eval's Hugging Face "
        "models, such as llava_hf or qwen2_5_vl"
    )
