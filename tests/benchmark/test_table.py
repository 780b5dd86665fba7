"""The tables of the documentation say what the results file says."""

from __future__ import annotations

import json

from tests.benchmark.table import METHODS, PAGE, RESULTS, fill


def test_the_page_shows_the_recorded_numbers():
    page = PAGE.read_text(encoding="utf-8")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, METHODS)]
    assert fill(page, *found) == page
