"""What is installed is found by the command line, and what the README writes can be run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tokenreduce.config import compose, option_files

README = (Path(__file__).parents[1] / "README.md").read_text()


def commands() -> list[list[str]]:
    """The arguments of every `tokenreduce` line of the README."""
    found = re.findall(r"^(?:torchrun .* -m )?tokenreduce (.*)$", README, re.MULTILINE)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_readme_compose(words: list[str]) -> None:
    assert compose([word for word in words if not word.startswith("hydra.")]).task.name


def test_the_readme_has_commands_and_every_file() -> None:
    package = Path(__file__).parents[1] / "tokenreduce_tiny"
    assert len(commands()) >= 3
    modules = {path.name for path in package.glob("*.py")}
    assert {name for name in modules if f"`{name}`" not in README} == set()


def test_the_options_are_there() -> None:
    assert {("task", "pretrain"), ("data", "lessons")} <= {(g, n) for g, n, _ in option_files()}


def test_help_names_them_and_loads_nothing() -> None:
    """The plug-in's files are read; neither it nor torch is imported."""
    code = (
        "import atexit, sys, tokenreduce.cli\n"
        "loaded = lambda: {'torch', 'tokenreduce_tiny'} & set(sys.modules)\n"
        "atexit.register(lambda: print('loaded:', *loaded()))\n"
        "tokenreduce.cli.main()"
    )
    command = [sys.executable, "-c", code, "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"task: .*pretrain", run.stdout)
    assert re.search(r"data: .*lessons", run.stdout)
    assert run.stdout.endswith("loaded:\n")
