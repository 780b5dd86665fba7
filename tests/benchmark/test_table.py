"""The tables of the documentation say what the results file says."""

from __future__ import annotations

import json

from tests.benchmark.table import PAGE, RESULTS, fill


def test_the_page_shows_the_recorded_numbers():
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page
