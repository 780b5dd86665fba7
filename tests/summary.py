"""What a run of the tests ends with: how many seconds they took together, on all workers."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The sum of the durations of every test, its set-up and its end; workers report theirs."""
    reports = [
        report
        for found in terminalreporter.stats.values()
        for report in found
        if isinstance(report, pytest.TestReport)
    ]
    if reports:
        seconds = sum(report.duration for report in reports)
        tests = len({report.nodeid for report in reports})
        terminalreporter.write_line(f"{tests} tests took {seconds:.0f} s together")
