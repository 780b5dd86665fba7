"""Who may import whom, what importing costs, and how large a module may grow."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tokenreduce"
MODULES = sorted(PACKAGE.rglob("*.py"))

NOWHERE = frozenset({"hydra", "omegaconf", "tokenreduce.config", "tokenreduce.cli"})
"""Only the program itself knows the configuration."""
PROGRAM = ("config", "cli", "program", "tasks", "refusals", "__main__")
"""May import everything; nothing outside of them may import them."""
ALIVE = frozenset({"transformers", "tokenreduce.reduction", "tokenreduce.engine", "timm"})
HEAVY = frozenset({"torch", "numpy", "transformers", "timm", "torchvision"})

RULES: dict[str, frozenset[str]] = {
    "registry": HEAVY | {"tokenreduce"},
    "plugins": HEAVY | {"tokenreduce"},
    "paper": HEAVY,
    "scheduler": HEAVY,
    "schedulers": HEAVY | {"tokenreduce.strategy", "tokenreduce.strategies"},
    "cost": HEAVY,
    "solve": HEAVY,
    "tokens": ALIVE | {"tokenreduce"},
    "choice": ALIVE | {"tokenreduce.strategies", "tokenreduce.adapters"},
    "geometry": ALIVE | {"tokenreduce.strategies", "tokenreduce.adapters"},
    "strategy": ALIVE | {"tokenreduce.adapter", "tokenreduce.strategies"},
    "strategies": ALIVE | {"tokenreduce.adapter", "tokenreduce.adapters"},
    "tower": ALIVE | {"tokenreduce.adapter", "tokenreduce.strategies", "tokenreduce.strategy"},
    "adapter": frozenset(
        {"tokenreduce.strategy", "tokenreduce.scheduler", "tokenreduce.reduction"}
    ),
    "adapters": frozenset(
        {
            "tokenreduce.strategy",
            "tokenreduce.strategies",
            "tokenreduce.scheduler",
            "tokenreduce.schedulers",
            "tokenreduce.reduction",
            "tokenreduce.engine",
        }
    ),
    "engine": frozenset(
        {"tokenreduce.strategies", "tokenreduce.adapters", "tokenreduce.reduction", "timm"}
    ),
    "reduction": frozenset({"tokenreduce.strategies", "tokenreduce.adapters", "timm"}),
    "checkpoint": ALIVE - {"tokenreduce.reduction"}
    | {"tokenreduce.strategies", "tokenreduce.adapters", "tokenreduce.schedulers"},
    "report": ALIVE | {"tokenreduce.strategies", "tokenreduce.adapters"},
}
"""What the modules of a name must not import, anywhere in them; DESIGN in one table."""

MAY = {
    # a scorer's usual schedule, and the lists of what ships, are asked for when they are needed
    ("strategy", "tokenreduce.strategies"),
    ("reduction", "tokenreduce.strategies"),
    ("reduction", "tokenreduce.adapters"),
    # how transformers is spelled, and a layer tried on noise: neither knows a reduction
    ("adapters", "tokenreduce.engine.call"),
    ("adapters", "tokenreduce.engine.trial"),
}
"""Whole folders that may be imported, so that what ships is registered; never what is in them.

And the two modules of the engine that adapters may use.
"""


def part(path: Path) -> str:
    """The first name below the package: `strategies` for `strategies/fastv.py`."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports at run time, as dotted names, wherever it does so."""
    tree = ast.parse(source)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)


def broken(path: Path, source: str) -> list[str]:
    """The imports of a module that the rules forbid."""
    name = part(path)
    forbidden = RULES.get(name, frozenset())
    if name not in PROGRAM:
        forbidden = forbidden | NOWHERE | {f"tokenreduce.{module}" for module in PROGRAM}
    own = ".".join(("tokenreduce", *path.relative_to(PACKAGE).with_suffix("").parts))
    found = []
    for module in imported(source):
        if module == own or (name, module) in MAY:
            continue
        if name == "strategies" and path.name != "__init__.py":  # never each other
            forbidden = forbidden | {"tokenreduce.strategies"}
        hit = any(
            module == bad or module.startswith(f"{bad}.") for bad in forbidden - {"tokenreduce"}
        )
        if hit or ("tokenreduce" in forbidden and _inside(name, module)):
            found.append(f"{path.relative_to(ROOT)} imports {module}")
    return found


def _inside(name: str, module: str) -> bool:
    """Whether a module that may use the standard library alone imports one of the package."""
    return module.split(".")[0] == "tokenreduce" and name in ("registry", "plugins")


def test_imports_go_one_way() -> None:
    assert [line for path in MODULES for line in broken(path, path.read_text())] == []


def test_every_rule_is_about_a_module() -> None:
    names = {part(path) for path in MODULES}
    assert set(RULES) <= names
    assert len(MODULES) > 40


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("strategies/fastv.py", "from transformers import LlamaConfig"),
        ("strategies/fastv.py", "from tokenreduce.strategies.random import Random"),
        ("strategies/vtw.py", "from tokenreduce import reduction"),
        ("strategies/vtw.py", "def late():\n    import hydra"),
        ("adapters/llava.py", "from tokenreduce.strategy import Strategy"),
        ("adapters/llava.py", "import tokenreduce.reduction"),
        ("scheduler.py", "import torch"),
        ("schedulers/single.py", "from torch import Tensor"),
        ("registry.py", "import numpy as np"),
        ("registry.py", "from tokenreduce import plugins"),
        ("reduction.py", "from tokenreduce.strategies.fastv import FastV"),
        ("reduction.py", "from tokenreduce.adapters.llava import Llava"),
        ("engine/passes.py", "from tokenreduce.cli import main"),
        ("testing/models.py", "import hydra"),
    ],
)
def test_a_tampered_source_is_found(module: str, line: str) -> None:
    """The check can fail: each of these lines, added to a real module, is reported."""
    path = PACKAGE / module
    source = path.read_text()
    assert broken(path, source) == []
    assert len(broken(path, f"{source}\n{line}\n")) >= 1


def test_types_may_be_named() -> None:
    """What is imported for type checkers alone does not count."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert broken(PACKAGE / "scheduler.py", source) == []


# -- what an import costs --------------------------------------------------------------------------


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_loads_no_frameworks() -> None:
    """Neither the package nor its public names bring Hydra, transformers or timm."""
    code = (
        "import sys, tokenreduce as tr; print('torch' in sys.modules)\n"
        "tr.cost, tr.Pyramid; print(*sorted({'hydra', 'omegaconf', 'transformers', 'timm',"
        " 'torchvision', 'matplotlib'} & set(sys.modules)))\n"
    )
    torch_loaded, frameworks = python(code).split("\n")[:2]
    assert torch_loaded == "False"
    assert frameworks == ""


@pytest.mark.slow
def test_importing_is_quick() -> None:
    """`import tokenreduce` adds at most 0.2 s to `import torch`; noisy machines get more tries."""
    code = (
        "import time, torch; start = time.perf_counter(); import tokenreduce;"
        " print(time.perf_counter() - start)"
    )
    for _ in range(4):
        if statistics.median(float(python(code)) for _ in range(3)) <= 0.2:
            return
    pytest.fail("import tokenreduce takes more than 0.2 s beside torch")


# -- size, and what must not be written down -------------------------------------------------------


def written() -> list[Path]:
    """Every text file that the project publishes."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:  # an unpacked sdist
        names = [str(path.relative_to(ROOT)) for path in MODULES]
    else:
        names = run.stdout.split("\0")
    kinds = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".cff", ""}
    paths = (ROOT / name for name in names if name)
    return [path for path in paths if path.suffix in kinds and path.is_file()]


def long(path: Path) -> Iterator[str]:
    """What of a module has too many lines: itself, or functions of it."""
    text = path.read_text()
    sizes = [("module", len(text.splitlines()), 400)]
    sizes += [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1, 70)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for name, lines, most in sizes:
        if lines > most:
            yield f"{path.relative_to(ROOT)} {name}: {lines} lines"


def test_modules_and_functions_are_short() -> None:
    assert [line for path in MODULES for line in long(path)] == []


MACHINE = re.compile(r"(?<![\w.])/(?:work|opt|root|home|tmp|mnt|Users)/[\w.-]+")


def test_no_machine_paths() -> None:
    """No file tells where it was written."""
    this = Path(__file__).resolve()
    found = [
        f"{path.relative_to(ROOT)}: {hit}"
        for path in written()
        if path.resolve() != this
        for hit in MACHINE.findall(path.read_text(errors="ignore"))
    ]
    assert found == []
    assert len(written()) > 60


def test_machine_paths_would_be_found() -> None:
    assert MACHINE.search("see /work/shared/notes.md")
    assert not MACHINE.search("https://example.org/home/page")


def test_completion_offers_public_names_alone() -> None:
    import tokenreduce as tr

    shown = {name for name in dir(tr) if not name.startswith("__")}
    assert shown == set(tr.__all__) - {"__version__"}
