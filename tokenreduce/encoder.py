"""The name under which version 0.1 had reductions of plain vision encoders."""

# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenreduce.errors import read_moved

if TYPE_CHECKING:
    from tokenreduce.reduction import Reduction as EncoderReduction


def __getattr__(name: str) -> Any:
    return read_moved(__name__, name, {"EncoderReduction": "tokenreduce.reduction.Reduction"})
