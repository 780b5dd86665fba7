"""A model's next-token logits along an answer that is laid down, by way of `generate()`.

`generate()` knows how each family goes on after a prompt (padding, positions, caches), and a
reduction decides on the prompt alone, as in use. Shapes: b samples, t tokens of an answer, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class ForcedTokens(LogitsProcessor):  # type: ignore[misc]  # transformers' types are loose
    """Leaves one choice at every step: the next token of `ids` (b, t)."""

    def __init__(self, ids: Tensor, start: int) -> None:
        self.ids, self.start = ids, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, V) zero at the token that is laid down, minus infinity elsewhere."""
        step = min(input_ids.shape[1] - self.start, self.ids.shape[1] - 1)
        chosen = self.ids[:, step, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def greedy_answers(
    model: Any, inputs: Mapping[str, Tensor], limit: int
) -> tuple[list[tuple[int, ...]], Tensor]:
    """The model's greedy answers, at most `limit` tokens each, and (b, t, V) their logits.

    An answer holds the token that ends it.
    """
    made = _generate(model, inputs, limit, None)
    ends = _ends(model)
    answers = []
    for row in made.sequences[:, inputs["input_ids"].shape[1] :].tolist():
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        answers.append(tuple(row[:stop]))
    return answers, torch.stack(made.logits, dim=1)


def forced_logits(
    model: Any, inputs: Mapping[str, Tensor], answers: Sequence[tuple[int, ...]]
) -> Tensor:
    """(b, t, V) logits before every token of `answers`, t that of the longest.

    After the end of a shorter answer they mean nothing.
    """
    longest = max(map(len, answers))
    rows = [answer + answer[-1:] * (longest - len(answer)) for answer in answers]
    ids = torch.tensor(rows, device=inputs["input_ids"].device)
    start = inputs["input_ids"].shape[1]
    logits = _generate(model, inputs, longest, ForcedTokens(ids, start)).logits
    return torch.stack(logits, dim=1)


def _generate(
    model: Any, inputs: Mapping[str, Tensor], limit: int, rule: ForcedTokens | None
) -> Any:
    processors = LogitsProcessorList([] if rule is None else [rule])
    with torch.inference_mode():
        return model.generate(
            **inputs,
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # some checkpoints bring one: greedy is the largest logit here
            logits_processor=processors,
            output_logits=True,
            return_dict_in_generate=True,
        )


def _ends(model: Any) -> set[int]:
    """The tokens that end an answer."""
    found = getattr(model.generation_config, "eos_token_id", None)
    return set() if found is None else set(found if isinstance(found, list) else [found])
