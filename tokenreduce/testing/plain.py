"""What the unreduced model can do by itself: older versions of transformers cannot do it all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def agrees_with_itself(model: Any, inputs: Mapping[str, Any], **options: Any) -> bool:
    """Whether the first token's logits are the same by `options` of `generate` as without them.

    Up to transformers 5.22 pictures are left out of a prefill in chunks, and up to 5.18 they are
    repeated wrongly for beams where a prompt has several (or several tiles).
    """
    common = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    try:
        with torch.no_grad():
            plain, other = (
                model.generate(**{**inputs, "do_sample": False, **common, **how}).logits[0]
                for how in ({}, options)
            )
    except (IndexError, TypeError, ValueError, RuntimeError):
        return False
    repeated = plain.repeat_interleave(len(other) // len(plain), dim=0)
    return bool(torch.allclose(repeated, other, atol=1e-4))


def checkpoint_activations(model: Any, reentrant: bool) -> None:
    """Turns activation checkpointing on, by the name of before transformers 5.23 or since."""
    options = {"use_reentrant": reentrant}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
