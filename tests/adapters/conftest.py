"""What all tests of families share."""

from __future__ import annotations

import pytest

from tests.quiet import quiet_transformers


@pytest.fixture(autouse=True)
def _quiet_transformers():
    with quiet_transformers():
        yield
