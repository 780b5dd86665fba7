"""Code and documentation use the field's words: CONTRIBUTING.md has the list."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [*ROOT.glob("tokenreduce/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
NOT_OURS = re.compile(
    r"\b(whoever|nobody|everybody|everyone|somebody|anybody|behind|beside)\b", re.I
)
RIGHT = {
    "far behind": "of accuracy: lower by much",
    "leaves behind": "of what remains on a disk",
}


def misplaced(text: str) -> list[str]:
    """The words of a text that are on the list, but for the uses that are right."""
    for phrase in RIGHT:
        text = text.replace(phrase, "")
    return NOT_OURS.findall(text)


def test_things_are_no_persons_and_nothing_is_behind_a_layer() -> None:
    found = {str(path.relative_to(ROOT)): misplaced(path.read_text()) for path in TEXTS}
    assert {path: words for path, words in found.items() if words} == {}
    assert len(TEXTS) > 300
    together = "".join(path.read_text() for path in TEXTS)
    assert [phrase for phrase in RIGHT if phrase not in together] == []


def test_a_word_is_found_and_a_right_use_is_not() -> None:
    assert misplaced("what Nobody reads behind the layer") == ["Nobody", "behind"]
    assert misplaced("stays far behind; text_behind") == []
