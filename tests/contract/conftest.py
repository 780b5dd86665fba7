"""Runs what is marked `contract` only where it is asked for, and says what it ran on.

The laws of this suite are a part of those in tests/laws, and its generations a part of those in
tests/parity: on the installed release the default run has both already. So it leaves them out;
scripts/check_versions.py asks for them by `-m contract`, on other releases.
"""

from __future__ import annotations

import platform

import pytest

UNMEASURED = "transformers .* than every release on which this tokenreduce was measured"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the marked tests, unless the expression of `-m` names the mark."""
    if "contract" in config.option.markexpr:
        for item in items:  # what is measured here may be a release that never was
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{UNMEASURED}"))
        return
    marked = [item for item in items if item.get_closest_marker("contract")]
    config.hook.pytest_deselected(items=marked)
    items[:] = [item for item in items if item not in marked]


@pytest.fixture(scope="session", autouse=True)
def _ground(record_testsuite_property: object) -> None:
    """Writes into a JUnit report what the suite ran on."""
    import torch
    import transformers

    record_testsuite_property("python", platform.python_version())
    record_testsuite_property("torch", torch.__version__)
    record_testsuite_property("transformers", transformers.__version__)
    record_testsuite_property("platform", f"{platform.system()} {platform.machine()}")
