"""Tables and pictures of one look; a picture is whole or not there."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tokenreduce.output import draws, figure, table

PACKAGE = Path(__file__).resolve().parents[1] / "tokenreduce"


def test_numbers_stand_at_the_right() -> None:
    made = table("title", ("name", "n"), right=("n",), caption="below")
    made.add_row("a", "1")
    made.add_row("long", "100")
    file = io.StringIO()
    Console(file=file, width=40).print(made)
    title, _, *_, row, last, _, below = file.getvalue().rstrip().splitlines()
    assert (title.strip(), below.strip()) == ("title", "below")
    assert re.fullmatch(r" *a +1 *", row)
    assert row.rstrip().endswith("  1")
    assert len(row.rstrip()) == len(last.rstrip())


def test_a_figure_is_a_file_when_its_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure.png"
    with figure(path, 1, 2, dpi=50, figsize=(4, 2)) as (_, axes):
        axes[0, 1].plot([1, 2])
        assert axes.shape == (1, 2)
        assert not path.exists()
    with Image.open(path) as image:
        assert (image.size, image.format) == ((200, 100), "PNG")
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), figure(path):
        _ = 1 / 0
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["figure.png"]


def test_matplotlib_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draws()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not draws()


def test_pictures_need_no_display_and_no_state(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tokenreduce.output import figure\n"
        f"with figure(Path({str(tmp_path / 'a.png')!r})): pass\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout == "False\n"


def test_there_is_one_look() -> None:
    """No module starts matplotlib or makes a table by itself."""
    own = re.compile(r"pyplot|matplotlib\.use|(?<![\w.])Table\(")
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if path.name != "output.py" and own.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []
