"""Recorded times of the methods' original code, to compare ours with.

`peers.json` says for every number which code it is of, where it was measured, and how. Nothing of
that code is here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("peers.json")


@lru_cache(maxsize=1)
def recorded() -> tuple[dict[str, Any], ...]:
    """All recorded rows."""
    return tuple(json.loads(FILE.read_text(encoding="utf-8"))["rows"])


def peer(subject: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the original code took for the same measurement: sizes, tokens, stops; or None."""
    if row["tower"] or row["batch"] != 1:
        return None
    for one in recorded():
        same = one["strategy"] == row["strategy"] and one["visual_tokens"] == row["visual_tokens"]
        sizes = [subject["layers"], subject["hidden"]] == [one["layers"], one["hidden"]]
        text = one["text_tokens"] == row["text_tokens"]
        stops = [list(stop) for stop in row["stops"]] == one["stops"]
        if same and sizes and text and stops:
            return one
    return None
