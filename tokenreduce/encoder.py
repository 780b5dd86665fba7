"""The name under which version 0.1 had reductions of plain vision encoders."""

# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenreduce.errors import warn_once

if TYPE_CHECKING:
    from tokenreduce.reduction import Reduction as EncoderReduction


def __getattr__(name: str) -> Any:
    if name != "EncoderReduction":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tokenreduce.reduction import Reduction

    warn_once("EncoderReduction is called Reduction from version 0.2 on")
    return Reduction
