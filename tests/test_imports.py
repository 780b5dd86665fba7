"""Who may import whom, what importing costs, and how large a module may grow."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import tokenreduce

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tokenreduce"
MODULES = sorted(PACKAGE.rglob("*.py"))

NOWHERE = frozenset({"hydra", "omegaconf", "tokenreduce.config", "tokenreduce.cli"})
"""Only the program itself knows the configuration."""
PROGRAM = ("config", "cli", "program", "tasks", "__main__")
"""May import everything; nothing outside of them may import them."""
ALIVE = frozenset({"transformers", "tokenreduce.reduction", "tokenreduce.engine", "timm"})
HEAVY = frozenset({"torch", "numpy", "transformers", "timm", "torchvision"})
SHIPPED = frozenset({"tokenreduce.strategies", "tokenreduce.adapters"})
LOW = HEAVY | {"tokenreduce"}
"""For modules of the standard library alone; what they may have of the package is in `MAY`."""


def features(*own: str) -> frozenset[str]:
    """What stands on top of the library, as a rule forbids it; all but `own`."""
    names = ("inference", "evaluation", "profiling", "benchmarking", "training")
    names += ("integrations", "testing")
    return frozenset(f"tokenreduce.{name}" for name in names if name not in own)


CORE = ALIVE | SHIPPED | features()
"""For what neither knows a live model, nor what ships, nor what is built of it."""

RULES: dict[str, frozenset[str]] = {
    "errors": LOW,
    "plugins": LOW,
    "checks": LOW,
    "paper": LOW,
    "evidence": LOW,
    "files": LOW,
    "output": HEAVY | CORE,
    "registry": LOW,
    "scheduler": HEAVY | CORE,
    "schedulers": HEAVY | CORE | {"tokenreduce.strategy"},
    "cost": HEAVY | CORE,
    "solving": HEAVY | CORE,
    "presets": HEAVY | CORE | {"tokenreduce.strategy"},
    "tokens": CORE | {"tokenreduce.strategy", "tokenreduce.adapter", "tokenreduce.scheduler"},
    "selection": CORE,
    "geometry": CORE,
    "strategy": CORE | {"tokenreduce.adapter"},
    "strategies": ALIVE | features() | {"tokenreduce.adapter", "tokenreduce.adapters"},
    "tower": CORE | {"tokenreduce.adapter", "tokenreduce.strategy"},
    "adapter": SHIPPED
    | features()
    | {"tokenreduce.strategy", "tokenreduce.scheduler", "tokenreduce.reduction"},
    "adapters": features()
    | {
        "tokenreduce.strategies",
        "tokenreduce.strategy",
        "tokenreduce.scheduler",
        "tokenreduce.schedulers",
        "tokenreduce.reduction",
        "tokenreduce.engine",
    },
    "engine": SHIPPED | features() | {"tokenreduce.reduction", "timm"},
    "choice": CORE | {"tokenreduce.adapter", "tokenreduce.strategy"},
    "encoder": SHIPPED | features() | {"transformers", "timm", "tokenreduce.engine"},
    "recipe": CORE,
    "compatibility": CORE,
    "report": CORE,
    "checkpoint": CORE | {"tokenreduce.schedulers"},
    "reduction": SHIPPED | features() | {"timm"},
    "downsample": CORE,
    "learning": SHIPPED | features() | {"transformers", "timm", "tokenreduce.engine"},
    "data": SHIPPED | features() | {"tokenreduce.engine", "tokenreduce.reduction", "timm"},
    "embedded": CORE - {"transformers"},
    "viz": CORE,
    "inference": features("inference"),
    "evaluation": features("inference", "evaluation"),
    "profiling": features("evaluation", "profiling"),
    "benchmarking": features("inference", "benchmarking"),
    "training": features("inference", "integrations", "training"),
    "integrations": features("integrations"),
    "testing": features("testing"),
    "config": HEAVY | {"tokenreduce.program", "tokenreduce.tasks", "tokenreduce.cli"},
    "program": frozenset({"tokenreduce.tasks", "tokenreduce.cli"}),
    "tasks": frozenset({"tokenreduce.cli"}),
    "cli": HEAVY,
    "__init__": HEAVY,
    "__main__": HEAVY,
}
"""What the modules of a name must not import, anywhere in them; DESIGN in one table."""

MAY = {
    # the lists of what ships are asked for when they are needed; never what is in them
    ("reduction", "tokenreduce.strategies"),
    ("reduction", "tokenreduce.adapters"),
}
"""Folders that may be imported as they are, so that what ships is registered."""

MAY_USE = {
    ("errors", "tokenreduce.plugins"),
    ("checks", "tokenreduce.errors"),
    ("files", "tokenreduce.errors"),
    ("evidence", "tokenreduce.checks"),
    ("evidence", "tokenreduce.errors"),
    ("registry", "tokenreduce.errors"),
    # how transformers is spelled, and a layer tried on noise: neither knows a reduction
    ("adapters", "tokenreduce.engine.call"),
    ("adapters", "tokenreduce.engine.probe"),
}
"""Modules that may be used although a rule forbids what they are a part of."""


PLUGINS = frozenset(path.parent.name for path in (ROOT / "plugins").glob("*/*/__init__.py")) - {
    "tests"
}
"""The packages in `plugins/`: they import tokenreduce, and it imports none of them."""
TASKS = {path.stem for path in (PACKAGE / "tasks").glob("*.py")} - {"__init__"}


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
            if node.module != "tokenreduce":  # of which the names are parts
                yield str(node.module)


def broken(path: Path, source: str) -> list[str]:
    """The imports of a module that the rules forbid."""
    name = part(path)
    forbidden = RULES.get(name, frozenset())
    if name not in PROGRAM:
        forbidden = forbidden | NOWHERE | {f"tokenreduce.{module}" for module in PROGRAM}
    own = ".".join(("tokenreduce", *path.relative_to(PACKAGE).with_suffix("").parts))
    found = []
    forbidden |= apart(path) | PLUGINS
    allowed = {module for one, module in MAY_USE if one == name}
    for module in imported(source):
        if module == own or (name, module) in MAY or under(module, allowed):
            continue
        if under(module, forbidden):
            found.append(f"{path.relative_to(ROOT)} imports {module}")
    return found


def under(module: str, names: Iterable[str]) -> bool:
    """Whether a module is one of `names` or a part of one."""
    return any(f"{module}.".startswith(f"{name}.") for name in names)


def apart(path: Path) -> frozenset[str]:
    """What a module of a folder must not import beside the rule of its name."""
    name = part(path)
    if path.name == "__init__.py" or name not in ("strategies", "tasks", "learning"):
        return frozenset()
    if name == "learning":  # only distillation runs a model
        known = CORE | {"tokenreduce.adapter", "tokenreduce.learning.distill"}
        return known if path.stem != "distill" else frozenset()
    if name == "strategies":
        return frozenset({"tokenreduce.strategies"})
    return frozenset(f"tokenreduce.tasks.{task}" for task in TASKS - {path.stem})


def test_imports_go_one_way() -> None:
    assert [line for path in MODULES for line in broken(path, path.read_text())] == []


def test_every_name_has_a_rule() -> None:
    """And every rule and exception is about a name that is there."""
    names = {part(path) for path in MODULES}
    assert set(RULES) == names
    assert {name for name, _ in MAY | MAY_USE} <= names
    assert len(MODULES) > 40


def test_a_task_is_one_file() -> None:
    """One for each option of the group, and nothing else."""
    options = {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")}
    assert options == TASKS
    folders = {path.name for path in (PACKAGE / "tasks").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set()


# -- no circles ------------------------------------------------------------------------------------


@cache
def named(source: str) -> tuple[frozenset[str], frozenset[str]]:
    """The modules that a source imports, and the public names that it calls: `tr.reduce`."""
    called = {
        f"tokenreduce.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("tr", "tokenreduce")
    }
    return frozenset(imported(source)), frozenset(called)


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which module imports which, late imports and names of `tr` counted.

    What a registry brings in by the name of its folder, when it is first looked into, is not.

    sources: by the dotted names of the modules.
    """
    homes = {name: f"tokenreduce.{home}" for name, home in vars(tokenreduce)["_HOME"].items()}
    homes["cost"] = "tokenreduce.cost"
    found: dict[str, set[str]] = {}
    for own, source in sources.items():
        modules, called = named(source)
        modules = set(modules)
        for module in called | {name for name in modules if name.count(".") == 1}:
            modules.add(homes.get(module.partition(".")[2], module))
        found[own] = {name for name in modules if name in sources} - {own, "tokenreduce"}
    return found


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of names that lead back to themselves (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(arrows.get(name, ())):
            if other not in number:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in arrows:
        if name not in number:
            visit(name)
    return found


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def by_name(arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The same between the names below the package."""
    found: dict[str, set[str]] = {}
    for own, others in arrows.items():
        names = {other.split(".")[1] for other in others}
        top = own.split(".")[1] if "." in own else ""
        found.setdefault(top, set()).update(names - {top})
    return found


SOURCES = {dotted(path): path.read_text() for path in MODULES}


def test_no_modules_import_each_other() -> None:
    arrows = graph(SOURCES)
    assert circles(arrows) == []
    assert sum(map(len, arrows.values())) > 800  # it has looked


def test_no_names_import_each_other() -> None:
    assert circles(by_name(graph(SOURCES))) == []


@pytest.mark.parametrize(
    ("module", "line", "group"),
    [
        ("checkpoint", "def late():\n    from tokenreduce.reduction import reduce", "reduction"),
        ("checkpoint", "import tokenreduce as tr\ndef f(): tr.reduce", "reduction"),
        (
            "inference.clock",
            "from tokenreduce.benchmarking.rounds import Interleaved",
            "benchmarking",
        ),
        ("files", "import tokenreduce.data.images", "data"),
    ],
)
def test_a_circle_is_found(module: str, line: str, group: str) -> None:
    own = f"tokenreduce.{module}"
    tampered = SOURCES | {own: f"{SOURCES[own]}\n{line}\n"}
    (found,) = circles(by_name(graph(tampered)))
    assert {own.split(".")[1], group} <= set(found)


# -- one name, one meaning -------------------------------------------------------------------------

SHARED = {
    "table": "what the task of a feature prints",
    "plot": "what the task of a feature draws",
    "summary": "what a feature found, as plain data",
    "options": "refusals of options before a task begins: its own, and those of every task",
    "site": "where a reduction works, with its hooks, stops and record: decoder layers, a tower",
    "strategy": "the bases of methods: all, and those with parameters",
    "downsample": "smaller pictures: the function, and the method that calls it",
}
"""Names of modules in several folders, and the one meaning that each has in all of them."""
OF_A_FAMILY = ("adapters", "testing/families")
"""In these folders a module is called as the model family that it is about."""


def ambiguous(paths: Iterable[Path]) -> list[str]:
    """Names that several modules have, without one meaning; paths below the package."""
    homes: dict[str, list[str]] = {}
    for path in paths:
        homes.setdefault(path.stem, []).append(path.parent.as_posix())
    found = []
    for name, folders in homes.items():
        others = [folder for folder in folders if folder not in OF_A_FAMILY]
        meanings = len(others) + (len(others) < len(folders))
        if meanings > 1 and name not in ("__init__", *SHARED):
            found.append(f"{name}: {', '.join(sorted(folders))}")
    return found


def test_one_name_has_one_meaning() -> None:
    """A module that shares its name with another means the same there; the list is not longer."""
    paths = [path.relative_to(PACKAGE) for path in MODULES]
    assert ambiguous(paths) == []
    names = [path.stem for path in paths]
    assert [name for name in SHARED if names.count(name) < 2] == []


@pytest.mark.parametrize("module", ["cost/tower.py", "engine/adapter.py", "viz/llava.py"])
def test_a_second_meaning_is_found(module: str) -> None:
    paths = [path.relative_to(PACKAGE) for path in MODULES]
    (line,) = ambiguous([*paths, Path(module)])
    assert line.startswith(Path(module).stem)


# -- the rules can fail ----------------------------------------------------------------------------


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
        ("engine/apply.py", "from tokenreduce.cli import main"),
        ("testing/models.py", "import hydra"),
        ("evaluation/runner.py", "from tokenreduce.program.refusals import is_refusal"),
        ("inference/loaded.py", "from omegaconf import DictConfig"),
        ("inference/clock.py", "from tokenreduce.benchmarking.rounds import Interleaved"),
        ("tasks/evaluate.py", "from tokenreduce.tasks.solve import only_target"),
        ("learning/strategy.py", "from tokenreduce.learning.distill import distill"),
        ("learning/gate.py", "from tokenreduce.reduction import reduce"),
        ("tasks/train.py", "from tokenreduce_tiny.stage import Stage"),
        ("program/result.py", "from tokenreduce.tasks import tasks"),
        ("checks.py", "from tokenreduce.registry import Registry"),
        ("errors.py", "import tokenreduce"),
        ("presets.py", "import torch"),
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


# -- what a plug-in may rely on --------------------------------------------------------------------

PUBLIC = {
    "adapter", "checks", "data.readers", "errors", "evidence", "geometry", "paper", "scheduler",
    "selection", "strategy", "testing", "tokens", "tower",
}  # fmt: skip
"""Modules that change with a deprecation only; `docs/architecture.md` lists them."""
OWN = {"downsample", "learning", "schedulers", "strategies"}
"""What methods that ship read as well: the bases of learned ones, and schedules."""


def test_methods_are_written_against_the_public_list() -> None:
    """Those that ship, and the tutorial's: what they import is what anybody may."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [name for name in sorted(PUBLIC) if f"`tokenreduce.{name}`" not in page] == []
    tutorial = sorted((ROOT / "plugins" / "tokenreduce-norm" / "tokenreduce_norm").glob("*.py"))
    methods = [*sorted((PACKAGE / "strategies").glob("*.py")), *tutorial]
    allowed = tuple(f"tokenreduce.{name}" for name in PUBLIC | OWN)
    found = [
        f"{path.name}: {module}"
        for path in methods
        if path.name != "__init__.py" or path in tutorial
        for module in imported(path.read_text())
        if module.startswith("tokenreduce.") and not module.startswith(allowed)
    ]
    assert found == []


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


LINES_OF_A_FUNCTION, LINES_OF_A_CLASS, PARAMETERS = 45, 150, 6
LONGER = {
    # public: one call with what a user may say, most of it by keyword
    "cost/model.py model_cost",
    "learning/distill.py distill",
    "learning/distill.py agreement",
    "integrations/vllm.py embed",
    "reduction.py reduce",
    "solving/search.py solve",
    # the facts of a family, and the life of a learned strategy, read from top to bottom
    "adapter.py Adapter",
    "data/encoding.py Encoder",
    "learning/strategy.py LearnedStrategy",
    "reduction.py Reduction",
    # one formula or one walk, which falls apart where it is cut
    "learning/distill.py _recording",
    "engine/attention.py LayerView",
    "engine/tower/merging.py Merging",
    "engine/reading.py CallReader",
    "evaluation/comparing.py _row",
    "geometry.py assign",
    "inference/look.py look",
    "profiling/meter.py ScheduleEvaluator",
    "profiling/meter.py __init__",
    "profiling/refining.py refine",
    "profiling/summary.py summary",
    "solving/summary.py summary",
    "solving/timing.py find",
    "strategies/tome.py match",
    "tasks/benchmark.py benchmark",
    "tasks/profile.py profile",
    "tasks/solve.py solve",
    "tasks/train.py train",
    "tasks/train.py make_trainer",
    "training/trainer_arguments.py arguments",
}
"""What reads better although it is longer than the rule, or takes more."""


def oversized(path: Path) -> Iterator[str]:
    """The classes and functions of a module that are longer than the rule, or take more."""
    for node in ast.walk(ast.parse(path.read_text())):
        lines = (getattr(node, "end_lineno", None) or 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
            taken = len(names) - (names[:1] in (["self"], ["cls"]))
            if lines > LINES_OF_A_FUNCTION or taken > PARAMETERS:
                yield f"{path.relative_to(PACKAGE)} {node.name}"
        elif isinstance(node, ast.ClassDef) and lines > LINES_OF_A_CLASS:
            yield f"{path.relative_to(PACKAGE)} {node.name}"


def test_classes_and_functions_are_short() -> None:
    """But for those that are listed; what is no longer longer leaves the list."""
    found = {one for path in MODULES for one in oversized(path)}
    assert sorted(found - LONGER) == []
    assert sorted(LONGER - found) == []


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
