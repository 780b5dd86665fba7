"""The name under which version 0.1 had reductions of plain vision encoders."""

from __future__ import annotations

from typing import Any

from tokenreduce.errors import warn_once


def __getattr__(name: str) -> Any:
    if name != "EncoderReduction":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenreduce.reduction import Reduction

    warn_once("EncoderReduction is called Reduction from version 0.2 on")
    return Reduction
