"""Tiny stock models and prompts for the engine's tests, each used as a caller would use it."""

from __future__ import annotations

from typing import Any

import pytest

import tokenreduce as tr
from tests.quiet import quiet_transformers
from tokenreduce.testing.models import FAMILIES


@pytest.fixture(autouse=True)
def _quiet_transformers():
    with quiet_transformers():
        yield


@pytest.fixture
def llava() -> Any:
    return FAMILIES["llava"].model()


@pytest.fixture
def llava_next() -> Any:
    return FAMILIES["llava_next"].model()


@pytest.fixture
def llama() -> Any:
    return FAMILIES["llama"].model()


@pytest.fixture
def schedule() -> tr.Scheduler:
    """Two stops in a decoder of six layers: a half, then a fifth."""
    return tr.Explicit(layers=(2, 4), keeps=(0.5, 0.2))
