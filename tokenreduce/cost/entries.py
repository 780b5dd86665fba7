"""Entries of a transformers configuration or of its dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenreduce.checks import integer
from tokenreduce.errors import BadOption


def read(part: Any, name: str) -> Any:
    """The entry `name` of a configuration or a dict, None where it has none."""
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def size(part: Any, *names: str) -> int:
    """The first entry of these names, a whole number."""
    value = next((v for v in (read(part, name) for name in names) if v is not None), None)
    if value is None:
        raise BadOption(
            f"the configuration has no {names[0]!r}: a config.json leaves out what equals its "
            "class's default; load it with transformers.AutoConfig, or pass a shape"
        )
    return integer(value, names[0], least=1)


def unlike(part: Any, what: str) -> ValueError:
    """What is said of layers that the formulas do not describe."""
    return ValueError(
        f"no formula here describes {read(part, 'model_type')!r}, which has {what}: "
        "pass a DecoderShape whose sizes come close, and say so with the numbers"
    )
