"""The laws of what a reduction does to the model, to memory and to other calls.

Every function takes a `Trial` and raises an AssertionError that names the law.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from tokenreduce.engine.call import cache_of, with_cache
from tokenreduce.engine.losses import aligned_loss
from tokenreduce.errors import ContractError
from tokenreduce.learning.strategy import LearnedStrategy
from tokenreduce.scheduler import Stop
from tokenreduce.strategy import Strategy
from tokenreduce.testing.batches import IGNORED, Batch, batch
from tokenreduce.testing.model_laws import close, refusal, refused, same
from tokenreduce.testing.oracle import decoder_of
from tokenreduce.testing.plain import checkpoint_activations
from tokenreduce.testing.trial import STEPS, Replay, Stops, Trial, generate
from tokenreduce.tokens import Plan, Tokens

FIRST_WORD = 10
"""An id that no family uses for anything but a word."""


def checkpointing_changes_nothing(trial: Trial, styles: Iterable[str] | None = None) -> None:
    """Law 5: loss and gradients are the same with activation checkpointing, in every style.

    The gradients of a learned strategy are among them.

    Args:
        trial: the trial.
        styles: names of `STYLES`; all of them.
    """
    model = trial.family.model(trial.attention).train()
    given = trial.batch("right")
    loss, gradients = _trained(trial, model, given, _stored)
    assert any(bool(g.abs().sum() > 0) for g in gradients.values()), "law 5: no gradient at all"
    for name in STYLES if styles is None else styles:
        again, others = _trained(trial, model, given, STYLES[name])
        law = f"law 5: checkpointing ({name}) changes nothing"
        same(f"{law}, loss", trial, again, loss)
        assert others.keys() == gradients.keys(), f"{law}: {trial} has other gradients"
        for weight, gradient in gradients.items():
            same(f"{law}, gradient of {weight}", trial, others[weight], gradient)


Style = Callable[[Any], Any]


def _trained(
    trial: Trial, model: Any, given: Batch, style: Style
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step, those of a learned strategy among them."""
    model.zero_grad()
    owned = trial.strategy if isinstance(trial.strategy, LearnedStrategy) else nn.Module()
    owned.zero_grad()
    inputs = dict(given.inputs)
    if given.bare:
        inputs["inputs_embeds"] = inputs["inputs_embeds"].clone().requires_grad_()
    with trial.reduce(model=model) as reduction, style(model), given.shown(reduction):
        loss = model(**inputs, labels=given.labels, use_cache=False).loss
        loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in owned.named_parameters():
        if parameter.grad is not None:
            gradients[f"strategy.{name}"] = parameter.grad.clone()
    if given.bare:
        gradients["inputs"] = inputs["inputs_embeds"].grad
    return loss.detach(), gradients


def _stored(model: Any) -> Any:
    """No checkpointing: activations are stored."""
    return nullcontext()


@contextmanager
def _checkpointed(model: Any, reentrant: bool) -> Iterator[None]:
    checkpoint_activations(model, reentrant)
    yield  # the model is the law's own, and checkpointing is set anew for the next style


def _non_reentrant(model: Any) -> Any:
    return _checkpointed(model, reentrant=False)


def _reentrant(model: Any) -> Any:
    return _checkpointed(model, reentrant=True)


@contextmanager
def _hooks_again(model: Any) -> Iterator[None]:
    """Checkpointing around the call of a layer, whose hooks then run again: FSDP's wrapper."""
    from torch.utils.checkpoint import checkpoint

    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False

    kind = type(decoder_of(model).layers[0])
    own = kind.__dict__.get("__call__")

    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inner = partial(nn.Module.__call__, layer, **kwargs)
        return checkpoint(inner, *args, use_reentrant=False)

    kind.__call__ = call
    try:
        yield
    finally:
        if own is None:
            del kind.__call__
        else:
            kind.__call__ = own


STYLES: Mapping[str, Style] = MappingProxyType(
    {"non_reentrant": _non_reentrant, "reentrant": _reentrant, "hooks_again": _hooks_again}
)
"""The styles of activation checkpointing, by name."""


def text_logits_give_the_same_loss(trial: Trial) -> None:
    """`logits="text"` saves work and changes neither the loss nor the last token's logits.

    A model whose loss takes no aligned labels (some up to transformers 5.16) refuses them.
    """
    given = trial.batch("left")
    losses, last = [], []
    if not aligned_loss(trial.model):
        refusal(trial, ContractError, 'logits="full"', partial(_labelled, trial, given))
        return
    for logits in ("full", "text"):
        with trial.reduce(logits=logits) as reduction, torch.no_grad():
            out = given.run(trial.model, reduction, use_cache=False, labels=given.labels)
        losses.append(out.loss)
        last.append(out.logits[:, -1])
    close("text logits, loss", trial, losses[1], losses[0])
    close("text logits, last token", trial, last[1], last[0])


def _labelled(trial: Trial, given: Batch) -> None:
    with trial.reduce(logits="text") as reduction, torch.no_grad():
        given.run(trial.model, reduction, use_cache=False, labels=given.labels)


def answers_change_no_choice(trial: Trial) -> None:
    """In training, what is kept does not depend on what the answer says."""
    given = trial.batch("right")
    others = _answered_otherwise(given)
    kept = []
    for batch_ in (given, others):
        labels = torch.where(_last_answer(given), given.labels, IGNORED)
        with trial.reduce() as reduction, torch.no_grad():
            batch_.run(trial.model, reduction, use_cache=False, labels=labels)
            kept.append(reduction.kept)
    for layer, rows in kept[0].items():
        for mine, theirs in zip(rows, kept[1][layer], strict=True):
            assert torch.equal(mine, theirs), f"{trial} chooses at layer {layer} by the answers"


def _last_answer(given: Batch) -> Tensor:
    """(b, l) True at the answer that ends each sample."""
    masked = given.real & (given.labels == IGNORED)
    position = torch.arange(masked.shape[1]).expand_as(masked)
    last = torch.where(masked, position, -1).amax(dim=1, keepdim=True)
    return given.real & (position > last)


def _answered_otherwise(given: Batch) -> Batch:
    """The batch with other words in the last answers."""
    name = "inputs_embeds" if given.bare else "input_ids"
    there, inputs = _last_answer(given), dict(given.inputs)
    assert bool(there.any(dim=1).all())
    x = inputs[name]
    inputs[name] = torch.where(there[..., None] if given.bare else there, x.roll(1, 0), x)
    if not given.bare:
        words = torch.where(x == FIRST_WORD, FIRST_WORD + 1, FIRST_WORD)
        inputs[name] = torch.where(there, words, x)
    return replace(given, inputs=inputs)


def the_model_is_left_as_it_was(trial: Trial) -> None:
    """Law 6: inputs, config, weights, hooks, attributes and random state are as they were.

    The model is also held against one that no reduction has ever been on: what an earlier trial
    left on it would be there before and after.
    """
    model, given = trial.model, trial.batch("left")
    plain, before = trial.plain("left"), _snapshot(model)
    copies = {name: x.clone() for name, x in given.inputs.items()}
    versions = {name: x._version for name, x in given.inputs.items()}
    state = torch.get_rng_state()
    with trial.reduce() as reduction:
        with torch.no_grad():
            given.run(model, reduction, use_cache=True)
        twin = copy.deepcopy(model)
        inside = _snapshot(model)
    after, untouched = _snapshot(model), _snapshot(_untouched(trial, given))
    for name in before:
        assert after[name] == before[name], f"law 6: {trial} changed the model's {name}"
    for name in before.keys() - {"parameters"}:  # which lie elsewhere in another model
        assert after[name] == untouched[name], f"law 6: {trial}: the model's {name} were changed"
    for name in ("config", "generation config", "parameters", "children"):
        assert inside[name] == before[name], f"law 6: {trial} changes the {name} while it works"
    for name, x in given.inputs.items():
        assert x._version == versions[name], f"law 6: {trial} wrote to the caller's {name}"
        assert torch.equal(x, copies[name]), f"law 6: {trial} wrote to the caller's {name}"
    assert torch.equal(state, torch.get_rng_state()), f"law 6: {trial} drew from torch's generator"
    with torch.no_grad():
        same("law 6: the model afterwards", trial, given.run(model, use_cache=False).logits, plain)
        same("law 6: a copy of it", trial, given.run(twin, use_cache=False).logits, plain)


def _untouched(trial: Trial, given: Batch) -> nn.Module:
    """The same model, which has only run: at a first call transformers adds hooks of its own."""
    model: nn.Module = trial.family.model(trial.attention)
    with torch.no_grad():
        given.run(model, use_cache=True)
        generate(model, given)
    return model


def _snapshot(model: nn.Module) -> dict[str, Any]:
    core: Any = model
    hooks, attributes = {}, {}
    for name, module in model.named_modules():
        state = vars(module)
        hooks[name] = {key: len(x) for key, x in state.items() if key.endswith("_hooks")}
        attributes[name] = (type(module), sorted(state))
    return {
        "config": core.config.to_dict(),
        "generation config": core.generation_config.to_dict(),
        "parameters": {n: (p.data_ptr(), p._version) for n, p in model.named_parameters()},
        "weights' names": list(model.state_dict()),
        "children": [name for name, _ in model.named_modules()],
        "hooks": hooks,
        "attributes": attributes,
        "mode": model.training,
    }


def calls_agree(trial: Trial) -> None:
    """Law 6: the same prompt twice, under one reduction, gives the same bits."""
    given, results, kept = trial.batch("left"), [], []
    with trial.reduce() as reduction, torch.no_grad():
        for _ in range(2):
            results.append(given.run(trial.model, reduction, use_cache=False).logits)
            kept.append(reduction.kept)
    same("law 6: two calls agree", trial, results[1], results[0])
    assert kept[0].keys() == kept[1].keys(), f"law 6: {trial} stops elsewhere the second time"
    for layer, rows in kept[0].items():
        for mine, theirs in zip(rows, kept[1][layer], strict=True):
            assert torch.equal(mine, theirs), f"law 6: {trial} chooses otherwise the second time"


def generations_do_not_disturb_each_other(trial: Trial) -> None:
    """Law 6: two generations step by step in turn equal each on its own."""
    prompts = ((1, 0), (2, 1))
    givens = [batch(trial.family, images, seed=seed) for seed, images in enumerate(prompts)]
    alone = []
    for given in givens:
        with trial.reduce() as reduction:
            steps = _steps(trial.model, given, reduction)
            alone.append([next(steps) for _ in range(STEPS)])
    with trial.reduce() as reduction:
        turns = [_steps(trial.model, given, reduction) for given in givens]
        together = [[next(steps) for steps in turns] for _ in range(STEPS)]
    for step, row in enumerate(together):
        for i, mine in enumerate(row):
            same(f"law 6: interleaved, step {step}", trial, mine, alone[i][step])


def _steps(model: Any, given: Batch, reduction: Any) -> Iterator[Tensor]:
    """The logits of a generation, one step at a time."""
    with torch.no_grad():
        out = given.run(model, reduction, use_cache=True)
    mask, options = given.inputs["attention_mask"], {}
    # M-RoPE: the model remembers one prompt alone, so that interleaved callers count themselves
    ahead = model.base_model.rope_deltas if given.family.own_positions else None
    while True:
        yield out.logits[:, -1]
        token = out.logits[:, -1].argmax(dim=-1, keepdim=True)
        if ahead is not None:
            options["position_ids"] = (mask.sum(1, keepdim=True) + ahead).expand(3, -1, -1)
        mask = torch.cat([mask, torch.ones_like(token)], dim=1)
        options |= {"attention_mask": mask, **with_cache(model, cache_of(out))}
        with torch.no_grad():  # not around the yield: it would hold between the steps
            out = model(input_ids=token, use_cache=True, **options)


@dataclass
class _Short(Strategy):
    """A method that keeps one token less than it was asked for."""

    def plan(self, tokens: Tokens, budget: Any) -> Plan:
        return Plan(tokens.origin[:, : max(budget) - 1], None)

    def scheduler(self) -> Any:
        return Stops((Stop(2, 0.5),))


class _Odd(Replay):
    """A method that reads what no adapter measures."""

    needs = frozenset({"tea leaves"})


def asking_without_getting_is_loud(trial: Trial) -> None:
    """Law 7: a reduction that cannot happen, or did not, is an error or a warning."""
    from tokenreduce import ReductionWarning

    asked = any(stop.keep < 1 for stop in trial.stops)
    for images in (None, (0, 0)):  # never called; called with text only
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ReductionWarning)
            with trial.reduce() as reduction:
                if images is not None:
                    given = trial.batch("left", images)
                    with torch.no_grad():
                        given.run(trial.model, reduction, use_cache=False)
                _no_claim(trial, reduction, called=images is not None)
        loud = any(issubclass(w.category, ReductionWarning) for w in caught)
        assert loud == asked, f"law 7: {trial} {'says nothing' if asked else 'warns'} of no effect"
    if asked:
        refused(trial, ValueError, "99", scheduler=Stops((Stop(99, 0.5),)))
    refused(trial, ValueError, "nowhere", positions="nowhere")
    refused(trial, TypeError, "tea leaves", strategy=_Odd({}, ()))
    refusal(trial, ValueError, "budget", lambda: _too_short(trial))


def _too_short(trial: Trial) -> None:
    with trial.reduce(strategy=_Short(), scheduler=None) as reduction, torch.no_grad():
        refused(trial, ValueError, "already reduced")
        trial.batch("left", (1,)).run(trial.model, reduction, use_cache=False)


def _no_claim(trial: Trial, reduction: Any, called: bool) -> None:
    """Without a prompt there is no report; of a prompt of text it says that nothing was applied."""
    try:
        report = reduction.report
    except RuntimeError:
        assert not called, f"law 7: {trial} has no report on a prompt of text"
        return
    assert called, f"law 7: {trial} reports on a prompt that never came"
    assert not any(report.applied), f"law 7: {trial} claims to have reduced a prompt of text"
    assert report.flops == report.flops_full, f"law 7: {trial} claims savings on a prompt of text"
