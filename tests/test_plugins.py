"""Installed plug-ins: each on its own risk, options beside ours, nothing in other programs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import tokenreduce as tr
from tokenreduce import plugins
from tokenreduce.config import build_strategy, compose, register
from tokenreduce.testing.models import FAMILIES

NORM = Path(__file__).resolve().parents[1] / "plugins" / "tokenreduce-norm"
STRATEGY = """
from dataclasses import dataclass
import tokenreduce as tr

@tr.strategies.register({name!r})
@dataclass
class Longest(tr.Scorer):
    p: float = 2.0

    def score(self, tokens):
        return tokens.hidden.norm(p=self.p, dim=-1)
"""
Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed into; what they register is undone."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    modules, before = set(sys.modules), dict(tr.strategies)
    plugins.load.cache_clear()
    yield folder
    plugins.load.cache_clear()
    tr.strategies._entries = before
    for name in set(sys.modules) - modules:
        if name.startswith(("plug_", "tokenreduce_norm")):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    def install(module: str, source: str, **configs: str) -> None:
        package = site / module
        package.mkdir()
        (package / "__init__.py").write_text(source)
        if configs:
            (package / "conf" / "strategy").mkdir(parents=True)
            (package / "conf" / "__init__.py").touch()
        for name, text in configs.items():
            (package / "conf" / "strategy" / f"{name}.yaml").write_text(text)
        announce(site, module)

    return install


def announce(site: Path, module: str, path: str | None = None) -> None:
    info = site / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{module} = {path or module}\n")


def test_a_plugin_adds_a_strategy_and_its_option(install: Install) -> None:
    install(
        "plug_longest",
        STRATEGY.format(name="longest"),
        longest="name: longest\np: 3.0\n",
    )
    assert [module.__name__ for module in plugins.load()] == ["plug_longest"]
    strategy = build_strategy(compose(["strategy=longest", "strategy.p=1"]))
    assert type(strategy) is tr.strategies["longest"]
    assert strategy.p == 1  # type: ignore[attr-defined]


def test_python_knows_a_plugins_names(install: Install) -> None:
    """As the command line does: nobody has to import the plug-in."""
    install("plug_longest", STRATEGY.format(name="longest"))
    with tr.reduce(FAMILIES["llava"].model(), "longest", tr.Single(keep=1.0)) as reduction:
        assert type(reduction.strategy) is tr.strategies["longest"]


def test_plugins_are_loaded_once(install: Install, site: Path) -> None:
    install("plug_once", "with open(__file__ + '.count', 'a') as file: file.write('x')")
    assert plugins.load() is plugins.load()
    assert (site / "plug_once" / "__init__.py.count").read_text() == "x"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("not python at all", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_is_named_and_the_rest_works(
    install: Install, source: str, reason: str
) -> None:
    install("plug_bad", source, bad="name: bad\n")
    install("plug_good", STRATEGY.format(name="good"), good="name: good\np: 2.0\n")
    with pytest.warns(plugins.PluginWarning) as caught:
        loaded = plugins.load()
    assert [module.__name__ for module in loaded] == ["plug_good"]
    (warning,) = caught
    assert str(warning.message).startswith("plug-in 'plug_bad' (plug_bad 1.2) is left out")
    assert reason in str(warning.message)
    assert build_strategy(compose(["strategy=good"]))
    assert build_strategy(compose(["strategy=fastv"]))


def test_a_plugin_that_is_gone_is_named(site: Path) -> None:
    announce(site, "plug_gone")
    with pytest.warns(plugins.PluginWarning, match="plug_gone"):
        assert plugins.load() == ()
    assert list(plugins.config_folders()) == []


def test_a_taken_name_is_refused_and_both_owners_are_named(install: Install) -> None:
    install("plug_thief", STRATEGY.format(name="fastv"))
    with pytest.warns(plugins.PluginWarning, match="fastv") as caught:
        plugins.load()
    message = str(caught[0].message)
    assert "tokenreduce.strategies.fastv.FastV" in message
    assert "plug_thief.Longest" in message
    assert tr.strategies["fastv"] is tr.FastV


def test_options_are_found_without_importing(install: Install) -> None:
    """Help and completion list them at no cost."""
    install("plug_slow", "raise RuntimeError('imported')", slow="name: slow\n")
    assert compose(["strategy=slow"]).strategy.name == "slow"
    assert "plug_slow" not in sys.modules


def test_a_plugin_adds_options_and_replaces_none(install: Install) -> None:
    install("plug_greedy", "", fastv="name: mine\n")
    assert compose(["strategy=fastv"]).strategy.name == "fastv"


def test_other_hydra_programs_see_nothing(install: Install, tmp_path: Path) -> None:
    install("plug_longest", "", longest="name: longest\n")
    register()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.yaml").write_text("a: 1\n")
    with initialize_config_dir(version_base="1.3", config_dir=str(theirs)):
        assert hydra_compose("config") == {"a": 1}
        loader = GlobalHydra.instance().config_loader()
        providers = [part.provider for part in loader.get_search_path().get_path()]
        assert loader.list_groups("") == ["hydra"]
    assert not [name for name in providers if "plug" in name]


def test_importing_tokenreduce_registers_nothing_with_hydra() -> None:
    code = (
        "import tokenreduce, tokenreduce.config\n"
        "from hydra.core.plugins import Plugins\n"
        "from hydra.plugins.search_path_plugin import SearchPathPlugin\n"
        "print([p.__name__ for p in Plugins.instance().discover(SearchPathPlugin)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_tutorial_plugin(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As installed: the entry point that its pyproject declares, its option, its defaults."""
    project = tomllib.loads((NORM / "pyproject.toml").read_text())["project"]
    ((_, module),) = project["entry-points"][plugins.GROUP].items()
    monkeypatch.syspath_prepend(NORM)
    announce(site, "tokenreduce_norm", module)
    strategy = build_strategy(compose(["strategy=norm"]))
    assert strategy == type(strategy)()
    assert strategy.scheduler() == tr.Pyramid()
    assert compose(["strategy=norm"]).scheduler.name == "pyramid"
    source = (NORM / module / "__init__.py").read_text().splitlines()
    assert len(source) < 30
