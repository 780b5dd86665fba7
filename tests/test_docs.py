"""What the documentation says runs, is complete, and is reached."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import tokenreduce as tr
import tokenreduce.strategies
from tokenreduce import plugins
from tokenreduce.config import compose
from tokenreduce.data.readers import readers
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.tasks import tasks

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOT_LISTED = ("__version__", "cost", "EncoderReduction")
"""Public names without an entry in the reference: no object, a module, a name of earlier."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
RUNNER = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()], pattern="*.md", path=str(ROOT))

COMMAND = re.compile(r"(?:\.venv/bin/)?tokenreduce(?:\s+(?P<rest>[^#\n]*))?(?:#.*)?")
FLAGS = {"-m", "--multirun"}
LONG = {"README.md", "docs/profile.md", "docs/training.md", "docs/learned.md"}
"""Pages whose code takes more than three seconds."""
APART = "|".join(f"{group}={name}" for group, name in plugins.SHIPPED_APART)
PLUGIN_ONLY = re.compile(rf"--config-dir|({APART})\b")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def with_code() -> list[Path]:
    return [path for path in PAGES if "```python" in path.read_text()]


def commands() -> dict[str, list[str]]:
    """Arguments of every `tokenreduce …` line in a shell block, and the pages that have it."""
    found: dict[str, list[str]] = {}
    for path in PAGES:
        for block in re.findall(r"```(?:console|bash|sh)\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.splitlines():
                last = line.split("&&")[-1].strip()
                command = COMMAND.fullmatch(last)
                if command and not PLUGIN_ONLY.search(last):
                    arguments = (command["rest"] or "").strip()
                    found.setdefault(arguments, []).append(name(path))
    return found


def pages() -> list[Any]:
    """Pages with code; those whose code takes seconds are marked."""
    assert {name(path) for path in with_code()} >= LONG
    slow = [pytest.mark.slow]
    return [
        pytest.param(path, id=name(path), marks=slow if name(path) in LONG else [])
        for path in with_code()
    ]


@pytest.mark.parametrize("path", pages())
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace per page, as a reader would."""
    monkeypatch.chdir(tmp_path)
    registries: list[Any] = [tr.strategies, tr.schedulers, tr.adapters, tasks, readers]
    before = [dict(registry) for registry in registries]
    for registry in registries:  # a page may register what an installed plug-in has as well
        for entry, kind in list(registry.items()):
            if not kind.__module__.startswith("tokenreduce."):
                del registry._entries[entry]
    try:
        for example in RUNNER.parse(path):
            example.evaluate()
    finally:
        for registry, entries in zip(registries, before, strict=True):
            registry._entries = entries


def test_most_pages_have_code() -> None:
    assert len(with_code()) >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "pages"), commands().items())
def test_commands_compose(arguments: str, pages: list[str]) -> None:
    """Every documented command line is a configuration that exists."""
    if arguments.startswith("--help"):
        return
    words = [word for word in shlex.split(arguments) if word not in FLAGS]
    if words[-2:-1] in (["--cfg"], ["--info"]):
        words = words[:-2]
    sweep = any(flag in shlex.split(arguments) for flag in FLAGS)
    words = [re.sub(r",.*", "", word) if sweep else _quoted(word) for word in words]
    config = compose(words)
    assert config.task.name, pages


def _quoted(word: str) -> str:
    """As `tokenreduce.cli.quote_text` does for free text."""
    key, equals, value = word.partition("=")
    return f"{key}='{value}'" if equals and key in ("prompt", "image", "model.id") else word


def test_there_are_commands() -> None:
    assert len(commands()) >= 10


def documented() -> set[str]:
    """Every path behind `:::`, and what it holds if it is a module."""
    paths = set()
    for path in DOCS.rglob("*.md"):
        paths |= set(re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE))
    return paths


def test_public_names_are_in_the_reference() -> None:
    public = [name for name in tr.__all__ if name not in NOT_LISTED]
    homes = {"tokenreduce.cost", *(f"tokenreduce.{tr._HOME[name]}.{name}" for name in public)}
    assert homes - documented() == set()


def test_reference_names_what_exists() -> None:
    """A `:::` block of a name that is gone would otherwise only show when the site is built."""
    assert documented()
    assert [path for path in sorted(documented()) if not exists(path)] == []


def exists(path: str) -> bool:
    """Whether a dotted path is a module, or something in one."""
    module, _, attribute = path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or bool(
            importlib.import_module(path)
        )
    except ImportError:
        return False


def test_everything_registered_is_documented() -> None:
    methods = (DOCS / "methods.md").read_text()
    families = (DOCS / "families.md").read_text()
    for entry in [*tr.strategies, *tr.schedulers]:
        assert f"| `{entry}` |" in methods
    for entry in tr.adapters:
        assert f"| `{entry}` |" in families
    classes = documented()
    for registry in (tr.strategies, tr.schedulers, tr.adapters):
        shipped = [kind for kind in registry.values() if kind.__module__.startswith("tokenreduce.")]
        assert shipped
        for kind in shipped:
            assert f"{kind.__module__}.{kind.__qualname__}" in classes


def test_every_method_says_how_to_cite_it() -> None:
    citing = (DOCS / "citing.md").read_text()
    for entry, kind in tr.strategies.items():
        assert f"`{entry}`" in citing
        assert str(kind.paper).removeprefix("arXiv ") in citing


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^\s+- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_links_within_the_repository_lead_somewhere() -> None:
    """On disk, as on a page that shows the files; mkdocs checks the site's own."""
    link = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
    dead = [
        f"{name(path)}: {target}"
        for path in PAGES
        if "--8<--" not in path.read_text()
        for target in link.findall(path.read_text())
        if not target.startswith(("http://", "https://")) and not (path.parent / target).exists()
    ]
    assert dead == []


def test_pages_link_no_file_that_the_site_leaves_out() -> None:
    """What `exclude_docs` names is in the repository, and nowhere on the site."""
    link = re.compile(r"\]\(([^)#\s:]+\.(?:json|py|ya?ml))\)")
    dead = [
        f"{name(path)}: {target}"
        for path in DOCS.rglob("*.md")
        for target in link.findall(path.read_text())
    ]
    assert dead == []


def test_the_example_with_real_weights_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, on the checkpoint and the picture that ship."""
    page = (DOCS / "quickstart.md").read_text()
    (block,) = re.findall(r"<!-- skip: next -->\n\n```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    folder = checkpoint_dir()
    code = block.replace("llava-hf/llava-1.5-7b-hf", str(folder))
    code = code.replace("cat.jpg", str(folder.parent / "example.png"))
    code = code.replace("What is this?", "what is in the red circle?")
    exec(compile(code, "quickstart.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.startswith("X\n")
    assert "layer 2   keeps   72" in said


def test_the_map_of_the_tree_has_every_folder() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (tree,) = re.findall(r"```text\n(tokenreduce/\n.*?)```", page, re.DOTALL)
    told = set(re.findall(r"[\w.]+/?(?=\s|$)", tree))
    folders = {f"{path.parent.name}/" for path in (ROOT / "tokenreduce").glob("*/__init__.py")}
    assert folders - told == set()
    named = {word for word in told if word.endswith(("/", ".py"))}
    assert [
        w for w in named if not any(p.exists() for p in (ROOT / w, ROOT / "tokenreduce" / w))
    ] == []


def test_tables_of_schedules_are_short() -> None:
    for path in (ROOT / "README.md", DOCS / "methods.md"):
        long = re.findall(r"^\|.*\d\.\d{7,}.*$", path.read_text(), re.MULTILINE)
        assert [row[:60] for row in long] == []
        assert max(map(len, re.findall(r"^\|.*`Explicit.*$", path.read_text(), re.M))) < 300


def test_no_page_says_a_paragraph_twice() -> None:
    for path in PAGES:
        found = [part.strip() for part in path.read_text().split("\n\n")]
        long = [part for part in found if len(part) > 120 and not part.startswith("```")]
        assert [part[:60] for part in set(long) if long.count(part) > 1] == [], name(path)


def test_readme_opens_with_the_two_commands() -> None:
    """Main job and tests, each with its own set-up: what CI and readers run letter for letter."""
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    main, tests = block[1].strip().splitlines()
    assert main.endswith(".venv/bin/tokenreduce")
    assert tests.endswith(".venv/bin/pytest -n auto")
    assert "$(sed" in (ROOT / ".ci" / "run").read_text()  # CI reads them from there


def test_readme_counts_the_recorded_runs_as_the_parity_page_does() -> None:
    rows = re.findall(r"^\| `\w+/\w+`.*$", (DOCS / "parity.md").read_text(), re.MULTILINE)
    differ = sum("deviates" in row for row in rows)
    said = " ".join((ROOT / "README.md").read_text().split())
    assert f"of {len(rows)} recorded runs" in said
    assert f"{len(rows) - differ} are reproduced" in said
    assert f"{differ} differ on purpose" in said


def test_versions_agree() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{tr.__version__}"' in pyproject
    assert f"version: {tr.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{tr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
