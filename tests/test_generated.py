"""What follows from the classes is written from them: options, pages, lists, public names."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tokenreduce as tr
from tokenreduce.paper import Paper
from tokenreduce.registry import import_modules

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
SHIPPED = {n: k for n, k in tr.strategies.items() if k.__module__.startswith("tokenreduce.")}


@pytest.fixture(scope="module")
def scripts() -> ModuleType:
    """`scripts/generate.py` as a module, with those that it imports."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import generate  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(SCRIPTS))
    return generate  # type: ignore[no-any-return]


@pytest.mark.slow
def test_everything_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, SCRIPTS / "generate.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_whole_files_are_up_to_date(scripts: ModuleType) -> None:
    """Options, pages, the index of recordings: what takes no model to make."""
    made = {**scripts.option_files.files(), **scripts.method_pages.files()}
    made[scripts.recordings.GOLDEN / "index.json"] = scripts.recordings.index()
    assert len(made) > 60
    assert [path for path, text in made.items() if scripts.written(path) != text] == []
    assert [*scripts.option_files.stale(), *scripts.method_pages.stale()] == []


@pytest.mark.parametrize("path", ["tokenreduce/__init__.py", "mkdocs.yml", "docs/citing.md"])
def test_parts_of_files_are_up_to_date(path: str, scripts: ModuleType) -> None:
    text = (ROOT / path).read_text()
    assert "generated: " in text
    assert scripts.render(ROOT / path) == text


def test_a_stale_file_is_named_with_the_command_that_mends_it(
    scripts: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "conf" / "strategy" / "fastv.yaml"
    monkeypatch.setattr(scripts, "outputs", lambda: {path: path.read_text() + "#"})
    assert scripts.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "conf/strategy/fastv.yaml is out of date: run python scripts/generate.py" in said
    assert scripts.main(["--chek"]) == 2


def test_a_part_of_an_unknown_name_is_refused(scripts: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: methosd -->\n<!-- end -->\n")
    with pytest.raises(KeyError, match="no table 'methosd'"):
        scripts.render(page)


@pytest.mark.parametrize("indent", ["", "      "])
def test_a_part_is_filled_where_it_stands(
    indent: str, scripts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "TABLES", {"two": lambda: "a\n\nb"})
    page = tmp_path / "page.yml"
    page.write_text(f"x\n{indent}# generated: two\nold\n{indent}# end\ny\n")
    assert scripts.render(page) == (
        f"x\n{indent}# generated: two\n{indent}a\n\n{indent}b\n{indent}# end\ny\n"
    )


NEW = '''
"""A method that somebody adds."""

from dataclasses import dataclass
from typing import ClassVar

import tokenreduce as tr
from tokenreduce.paper import Paper
from tokenreduce.schedulers.single import Single
from tokenreduce.strategy import Scorer, strategies


@strategies.register("new")
@dataclass
class New(Scorer):
    """Keep what is new. And more words."""

    share: float = 0.25
    """Share of the old.

    Not in the file.
    """

    paper: ClassVar[Paper] = Paper("new2026", "A {New} One", "New, A.", 2026, "2601.00001")
    formula: ClassVar[str] = "the new"

    def score(self, tokens):
        """(b, v) later is newer."""
        return tokens.origin.float()

    def scheduler(self):
        """Before everything, to a tenth."""
        return Single(layer=0, keep=0.1)
'''


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[tr.Strategy]]:
    """A class whose file lies in the folder of strategies, and is named nowhere."""
    (tmp_path / "new.py").write_text(NEW)
    package = importlib.import_module("tokenreduce.strategies")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    import_modules("tokenreduce.strategies")
    try:
        yield tr.strategies["new"]
    finally:
        del sys.modules["tokenreduce.strategies.new"]
        del package.new
        del tr.strategies._entries["new"]


def test_one_file_makes_everything_about_a_method(
    new: type[tr.Strategy], scripts: ModuleType
) -> None:
    wanted = {
        str(path.relative_to(ROOT)): text
        for path, text in {**scripts.option_files.files(), **scripts.method_pages.files()}.items()
    }
    option = wanted["conf/strategy/new.yaml"]
    assert option.startswith("# Keep what is new (arXiv 2601.00001).\ndefaults:\n")
    assert (
        "scheduler@_global_.scheduler: new\nname: new\nshare: 0.25   # Share of the old" in option
    )
    assert option.endswith("generate.py from tokenreduce/strategies/new.py\n")
    assert wanted["conf/scheduler/new.yaml"].startswith(
        "# New: before everything, to a tenth.\nname: single\nlayer: 0\nkeep: 0.1\n"
    )
    page = wanted["docs/methods/new.md"]
    assert "| what stays | the new |" in page
    assert "| paper | A New One, arXiv 2026, [arXiv 2601.00001](https://" in page
    assert "`Single(layer=0, keep=0.1)`, on the command line `scheduler=new`" in page
    assert "| parity | nothing recorded |" in page
    assert "| `share` | `0.25` | Share of the old. |" in page
    assert "::: tokenreduce.strategies.new.New" in page
    tables = scripts.TABLES
    assert "    from tokenreduce.strategies.new import New" in tables["registered-classes"]()
    assert '    "New": "strategies.new",' in tables["homes"]()
    assert "- methods/new.md" in tables["method-pages"]()
    assert "@article{new2026," in tables["citations"]()
    assert "| `new` |" in tables["strategies"]()


def test_words_beside_options_are_their_docstrings(scripts: ModuleType) -> None:
    from facts import option_docs  # type: ignore[import-not-found]

    assert option_docs(tr.HiRED) == {
        "whole": "Share of the budget for the whole picture at low resolution."
    }
    assert option_docs(tr.ScorerMLP)["weights"].startswith("A safetensors file; null")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_method_states_its_facts(name: str) -> None:
    kind = SHIPPED[name]
    assert kind.formula
    assert kind.cost
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    assert f"::: {kind.__module__}.{kind.__qualname__}\n" in page
    assert kind.formula in page
    if isinstance(kind.paper, Paper):
        assert kind.paper.bibtex() in page
        assert kind.paper.bibtex() in (ROOT / "docs" / "citing.md").read_text()
        assert re.fullmatch(r"\d{4}\.\d{5}", kind.paper.arxiv)
        assert re.fullmatch(r"[A-Za-z0-9]+", kind.paper.key)
        assert kind.paper.code


def test_no_two_papers_share_a_key() -> None:
    papers = {kind.paper for kind in SHIPPED.values() if isinstance(kind.paper, Paper)}
    assert len({paper.key for paper in papers}) == len(papers)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_option_says_what_it_does(name: str, scripts: ModuleType) -> None:
    from facts import fields, option_docs

    said = option_docs(SHIPPED[name])
    assert [field.name for field in fields(SHIPPED[name]) if not said.get(field.name)] == []


def test_every_registered_class_is_a_public_name() -> None:
    for kind in (*SHIPPED.values(), *tr.schedulers.values()):
        if kind.__module__.startswith("tokenreduce."):
            assert getattr(tr, kind.__name__) is kind
            assert kind.__name__ in dir(tr)


def test_papers_cite_themselves() -> None:
    venue = "Conference on Things (COT)"
    paper = Paper("a2026", "{VLM} things", "A, B. and C, D.", 2026, "2601.00001", venue)
    assert (str(paper), paper.short_venue) == ("arXiv 2601.00001", "COT 2026")
    assert paper.plain_title == "VLM things"
    assert paper.link == "https://arxiv.org/abs/2601.00001"
    assert paper.bibtex() == (
        "@inproceedings{a2026,\n  title     = {{VLM} things},\n  author    = {A, B. and C, D.},\n"
        "  booktitle = {Conference on Things (COT)},\n  note      = {arXiv:2601.00001},\n"
        "  year      = {2026}\n}"
    )
    alone = Paper("b2026", "Other things", "A, B.", 2026)
    assert (str(alone), alone.link, alone.short_venue) == ("Other things", "", "arXiv 2026")
    assert "journal" not in alone.bibtex()
