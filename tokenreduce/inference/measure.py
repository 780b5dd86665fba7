"""Measures a model on one prompt: prefill time, and how likely it finds an answer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenreduce.engine.call import cache_of, with_cache
from tokenreduce.inference.clock import Clock, Times

Context = Callable[[], AbstractContextManager[Any]]


def prefill(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The forward pass over the whole prompt that `generate` begins with."""
    with torch.inference_mode():
        return model(**inputs, use_cache=True, logits_to_keep=1)


def prefill_times(
    model: Any, prompts: Sequence[Mapping[str, Any]], contexts: Sequence[Context], runs: int
) -> list[list[float]]:
    """Milliseconds of `runs` prefills of each prompt within its context, after one that warms up.

    In turn, so that whatever slows the machine down meets all of them; synchronised, so that the
    work is done and not only asked for. The vision encoder is part of a prefill.
    """
    times = [Times(Clock(model.device, wall=True)) for _ in contexts]
    for i in range(runs + 1):
        for row, inputs, context in zip(times, prompts, contexts, strict=True):
            with context():
                row.measure(partial(prefill, model, inputs))
            if not i:
                row.forget()
    return [[1e3 * seconds for seconds in row.clock] for row in times]


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """The median of one series of times over the median of another: shown with both."""
    return statistics.median(times) / statistics.median(base)


def likelihood(model: Any, inputs: Mapping[str, Any], answer: Tensor) -> float:
    """The probability that `model` gives exactly the tokens `answer` (n,) after the prompt.

    The answer follows in a second pass on the prompt's cache, so that a reduction decides on the
    prompt alone, as it does when it generates.
    """
    answer = answer[None].to(inputs["input_ids"].device)
    first = prefill(model, inputs)
    logits = first.logits[:, -1:]
    if answer.shape[1] > 1:
        # one prompt has no padding; Qwen-VL would count positions over the whole of a mask
        with torch.inference_mode():
            known = with_cache(model, cache_of(first))
            rest = model(input_ids=answer[:, :-1], use_cache=True, **known)
        logits = torch.cat([logits, rest.logits], dim=1)
    chosen = logits.float().log_softmax(dim=-1).gather(2, answer[..., None])
    return float(chosen.sum().exp())
