"""What is read of a table: it fits a screen of 80 columns, and says what its numbers are about."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.evaluation.test_comparing import FULL, LEVEL, N, reduced, rows
from tokenreduce.evaluation import table as shown
from tokenreduce.evaluation.comparing import compare
from tokenreduce.evaluation.examples import accuracy, change, picked
from tokenreduce.viz.quantities import counted

Rows = list[dict[str, Any]]


def made(right: list[int] | None = None, ours: dict[str, Any] | None = None) -> Rows:
    """A table with a row of every role; ten questions have a paraphrase."""
    whole = [1] * N if right is None else right
    half = [0] * 10 + [1] * (N - 10)
    ten = dict(list(rows(whole, p_yes=0.7).items())[:10])
    conditions = {
        "full": (FULL, rows(whole)),
        "paraphrase": ({**FULL, "change": "paraphrase"}, ten),
        "ours": (reduced("pyramid_drop"), ours or rows(half, p_yes=0.5)),
        **{f"r{i}": (reduced("random", i), rows(half, p_yes=0.6)) for i in range(5)},
    }
    noted = {
        key: {"condition": one, "shares": [(2, 0.5), (4, 0.25), (6, 0.125)]}
        for key, (one, _) in conditions.items()
    }
    found = compare(noted, {key: given for key, (_, given) in conditions.items()}, LEVEL)
    return [{"model": "tiny", **row} for row in found]


def text(table: Rows, width: int = 80, notes: list[str] | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown.show(table, LEVEL, notes or [], width))
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    return written


def test_it_fits_80_columns_and_nothing_is_cut() -> None:
    said = text(made())
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for word in ("difference (95 %)", "FLOPs", "verdict", "full model", "random, 5 seeds"):
        assert word in said
    assert "pyramid_drop" in said
    assert re.search(r"-25\.0 \[-\d\d\.\d,-\d\d\.\d\]", said)
    assert re.search(r"-25\.0 \[-\d\d\.\d,-\d\d\.\d\]", said)
    title = "visual tokens: 50 % from layer 2, 25 % from layer 4, 12.5 % from layer 6"
    assert title in " ".join(said.split())


def test_the_p_value_on_the_screen_is_the_verdicts() -> None:
    row = next(row for row in made() if row["role"] == "tested")
    assert row["verdict"] == "worse"
    assert row["paired"]["holm"] < LEVEL.alpha


def test_a_row_over_fewer_questions_says_so() -> None:
    few = next(row for row in made() if row["role"] == "harmless")
    assert shown.label(few) == "paraphrase, 10 questions"
    assert "paraphrase, 10" in text(made())


def test_what_a_reader_must_know_is_remarked() -> None:
    assert shown.remarks(made()) == []
    (note,) = shown.remarks(made([0] * N))
    assert note.startswith("the full model has no answer right")
    broken = rows([1] * N)
    for i in range(3):
        broken[str(i)]["probabilities"] = {"yes": None, "no": None}
    (note,) = shown.remarks(made(ours=broken))
    assert note.startswith("pyramid_drop · ")
    assert "3 of 40 questions without finite probabilities" in note
    few = [{**row, "pictures": 8} for row in made()]
    assert shown.remarks(few) == [
        "8 pictures: intervals over fewer than 20 are too narrow; p and verdict hold"
    ]


@pytest.mark.parametrize("word", ["null reducer", "beyond", "millibit", "1 pictures", "not shown"])
def test_words_of_another_field_are_gone(word: str) -> None:
    assert word not in text([{**row, "pictures": 1} for row in made()])


def test_a_sweep_names_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown.write(tmp_path, made(), LEVEL, {"one": ["a note"], "two": ["a note", "another"]})
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["notes"] == ["a note", "another"]
    assert shown.earlier_notes(tmp_path) == {"one": ["a note"], "two": ["a note", "another"]}
    shown.print_stored(tmp_path)
    said = capsys.readouterr().out
    assert f"Written: {tmp_path / 'table.csv'}" in said
    assert said.count("verdict") >= 1


def test_what_a_report_says_of_all_questions() -> None:
    table = made()
    full, ours = table[0], table[-1]
    assert (
        accuracy(full) == "Full model: 100.0 % right (95 % interval 100.0 to 100.0), 40 questions."
    )
    assert accuracy(ours).startswith("Reduced: 75.0 % right (95 % interval ")
    assert "-25.0 points" in accuracy(ours)
    right, wrong = ({"correct": c, "answer": a} for c, a in ((True, "a"), (False, "b")))
    other = {"correct": False, "answer": "c"}
    assert [change(*pair) for pair in ((right, wrong), (wrong, right), (wrong, other))] == [0, 1, 2]
    items: Any = [type("Item", (), {"name": str(i)}) for i in range(3)]
    before = {"0": right, "1": right, "2": right}
    after = {"0": wrong, "1": right, "2": wrong}
    said = picked(items, [items[0], items[2]], before, after)
    assert "2 of 3 questions" in said
    assert "2 of 2 lost, 0 of 1 unchanged" in said


def test_counts_have_their_noun() -> None:
    assert [counted(n, "picture") for n in (0, 1, 2)] == ["0 pictures", "1 picture", "2 pictures"]
