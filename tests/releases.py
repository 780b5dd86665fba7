"""What older releases of transformers do otherwise, reduced or not: each is said once, and why.

A test that is about the present behaviour is skipped on them by one of these; what can be seen on
the installed release is looked at, and only the rest goes by its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache

UNTIL: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "video rows": ("5.9", "counts the rows of a video through all of its frames"),
        "drafts back": (
            "5.13",
            "takes drafts back only where one is wrong: a reduced sliding window refuses it then",
        ),
        "video times": ("5.17", "gives all frames of a video one time where they follow closely"),
    }
)
"""What it is about -> the last minor release that does it, and what it does."""


def skip_before_fixed(what: str) -> None:
    """Skips the running test where the installed release has the fault of this name."""
    last, why = UNTIL[what]
    if Version(transformers.__version__).release[:2] <= Version(last).release:
        pytest.skip(f"transformers up to {last} {why}")


def empties_caches() -> bool:
    """Whether `reset()` leaves nothing in a growing cache; up to 5.17 it makes zeros of it."""
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    cache.reset()
    return cache.get_seq_length() == 0
