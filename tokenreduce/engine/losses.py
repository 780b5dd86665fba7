"""How a model's loss is called, read from its source: the contract's word on text logits."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from torch import nn

from tokenreduce.engine.call import SHIFTED
from tokenreduce.engine.contract import installed
from tokenreduce.errors import ContractError

LOSSES = ("loss_function", "CrossEntropyLoss", "cross_entropy")
"""Under which names transformers' models compute a loss from logits and labels."""


def aligned_loss(model: nn.Module) -> bool:
    """Whether a model's loss takes labels that are aligned with its logits already.

    Read from where its class calls the loss: the keywords that it does not know, `shift_labels`
    among them, are handed on there. True where that cannot be read, and where another forward has
    taken the place of the class's (a fused loss), which knows best.
    """
    own = [vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind)]
    called = inspect.unwrap(model.forward)
    if getattr(called, "__func__", called) not in map(inspect.unwrap, own):
        return True
    for forward in own:
        if SHIFTED in inspect.signature(forward).parameters:
            return True
        if calls := _calls(forward):
            handed = {word.arg for call in calls for word in call.keywords}
            return None in handed or SHIFTED in handed  # None: `**kwargs`
    return True


def unaligned(model: nn.Module) -> ContractError:
    """The error for text logits and labels, where the model's loss expects logits of all tokens."""
    return ContractError(
        f"transformers {installed()}, {type(model).__name__}: its loss cannot be told which labels "
        'belong to the logits that logits="text" leaves (its forward hands no shift_labels on): '
        'reduce with logits="full", or install a newer transformers'
    )


def _calls(function: Callable[..., Any]) -> list[ast.Call]:
    """Where a function's source calls something that goes by one of `LOSSES`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):  # no source, or no function
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", None)) in LOSSES
    ]
