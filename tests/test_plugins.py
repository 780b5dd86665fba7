"""Installed plug-ins: each on its own risk, options beside ours, nothing in other programs."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException

import tokenreduce as tr
from tokenreduce import cli, plugins
from tokenreduce.config import build_reader, build_strategy, compose, register
from tokenreduce.data.readers import readers
from tokenreduce.program import refusals
from tokenreduce.tasks import tasks
from tokenreduce.testing.models import FAMILIES

APART = Path(__file__).resolve().parents[1] / "plugins"
NORM = APART / "tokenreduce-norm"
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
COUNT = """
from tokenreduce.tasks import Task, tasks

needs = {"plug_needed": "plug[all]"}
task = Task("plug_count.late:count", least={"rows": 1}, needs=needs, resumes=True)
tasks.register("count")(task)
"""
LATE = """
def count(config, output):
    (output / "rows.txt").write_text("x" * config.task.rows)
    return {"rows": config.task.rows}
"""
CAPTIONS = """
from dataclasses import dataclass
from PIL import Image
from tokenreduce.data.conversations import Conversations
from tokenreduce.data.items import Item
from tokenreduce.data.readers import Data, Reader, readers
from tokenreduce.data.rows import Conversation

@readers.register("captions")
@dataclass(frozen=True)
class Captions(Reader):
    size: int = 4
    word: str = "red"

    def conversations(self, seed):
        return Data(Conversations(self.size, self.row), None)

    def row(self, index):
        asked = [{"type": "image"}, {"type": "text", "text": "what colour is it?"}]
        said = [{"type": "text", "text": self.word}]
        messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
        return Conversation(f"row {index}", (Image.new("RGB", (96, 96), self.word),), messages)

    def items(self, limit, seed):
        picture = Image.new("RGB", (96, 96), self.word)
        return [
            Item(n, picture, "colour", "what colour is it?", self.word, name=f"{n}")
            for n in range(self.size)
        ]
"""
REGISTRIES: tuple[Any, ...] = (tr.strategies, tasks, readers)
Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages can be installed into; what they register is undone."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    modules = set(sys.modules)
    before = [dict(registry) for registry in REGISTRIES]
    plugins.load.cache_clear()
    yield folder
    plugins.load.cache_clear()
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries = entries
    for name in set(sys.modules) - modules:
        if name.startswith(("plug_", "tokenreduce_norm")):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    def install(module: str, source: str, group: str = "strategy", **configs: str) -> None:
        package = site / module
        package.mkdir()
        (package / "__init__.py").write_text(source)
        if configs:
            (package / "conf" / group).mkdir(parents=True)
            (package / "conf" / "__init__.py").touch()
        for name, text in configs.items():
            (package / "conf" / group / f"{name}.yaml").write_text(text)
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


# -- tasks -----------------------------------------------------------------------------------------


@pytest.fixture
def counting(install: Install, site: Path) -> Path:
    """A plug-in with a task, whose code lies in a module that is imported when it runs."""
    install("plug_count", COUNT, "task", count="name: count\nrows: 3\n")
    (site / "plug_count" / "late.py").write_text(LATE)
    (site / "plug_needed.py").touch()
    return site


def test_a_plugin_adds_a_task(counting: Path, tmp_path: Path) -> None:
    """Its option is found without importing the plug-in, its module when it runs."""
    config = compose(["task=count", "task.rows=5"])
    assert "plug_count" not in sys.modules
    task = cli.find_task("count")
    assert (str(task), task.resumes) == ("plug_count.late:count", True)
    assert "plug_count.late" not in sys.modules
    assert cli.run(config, tmp_path) == {"rows": 5}
    assert (tmp_path / "rows.txt").read_text() == "xxxxx"
    assert (tmp_path / "result.json").is_file()


def test_what_a_task_says_of_itself_is_checked_before_it_is_imported(
    counting: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"task\.rows must be a whole number of at least 1"):
        cli.run(compose(["task=count", "task.rows=0"]), tmp_path)
    (counting / "plug_needed.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(
        ValueError, match=r'task=count needs plug_needed: pip install "plug\[all\]"'
    ):
        cli.run(compose(["task=count"]), tmp_path)
    assert "plug_count.late" not in sys.modules


def test_a_function_is_a_task(install: Install, tmp_path: Path) -> None:
    source = "from tokenreduce.tasks import tasks\n"
    source += "@tasks.register('one')\ndef one(config, output): return {'one': 1}\n"
    install("plug_one", source, "task", one="name: one\n")
    assert cli.run(compose(["task=one"]), tmp_path) == {"one": 1}


def test_a_task_replaces_none(install: Install) -> None:
    install("plug_thief", COUNT.replace('"count"', '"train"'))
    with pytest.warns(plugins.PluginWarning, match="'train' is taken") as caught:
        plugins.load()
    for owner in ("tokenreduce.tasks.train:train", "plug_count.late:count"):
        assert owner in str(caught[0].message)


def test_an_unknown_task_is_told_the_known_ones(counting: Path) -> None:
    with pytest.raises(KeyError, match=r"no task 'trian'; did you mean 'train'.*generate.*count"):
        cli.find_task("trian")


# -- kinds of data ---------------------------------------------------------------------------------


@pytest.fixture
def captions(install: Install) -> None:
    install("plug_captions", CAPTIONS, "data", captions="name: captions\nsize: 4\nword: red\n")


def test_a_plugin_adds_a_kind_of_data(captions: None) -> None:
    reader = build_reader(compose(["data=captions", "data.size=3"]))
    assert type(reader) is readers["captions"]
    assert len(reader.conversations(0).train) == 3
    assert [item.answer for item in reader.items(None, 0)] == ["red"] * 3
    assert {one.name for one in reader.prompts(2, 0)} == {"row 0", "row 1", "row 2"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.size=many", "data 'captions': size must be a whole number, not 'many'"),
        ("+data.sise=3", "data 'captions' has no option 'sise'; did you mean 'size'"),
        ("data.name=caption", "no data 'caption'; did you mean 'captions'.*shapes, llava"),
    ],
)
def test_options_of_data_are_checked_whatever_the_task(
    captions: None, tmp_path: Path, word: str, message: str
) -> None:
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        cli.run(compose(["task=solve", "target.flops=0.5", "data=captions", word]), tmp_path)


def test_what_a_kind_of_data_cannot_do_is_refused(install: Install) -> None:
    """With those that can, the plug-ins' among them."""
    source = CAPTIONS[: CAPTIONS.index("    def items")].replace("captions", "trained")
    install("plug_trained", source, "data", trained="name: trained\n")
    plugins.load()
    with pytest.raises(ValueError, match=r"no data 'trained' to evaluate on .known: .*questions"):
        readers["trained"]().items(1, 0)
    with pytest.raises(ValueError, match=r"no data 'questions' to train on .known: .*trained"):
        readers["questions"]().conversations(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:4 questions can hardly show")
def test_the_tasks_use_it(captions: None, tmp_path: Path) -> None:
    """Evaluation, profile and training read a plug-in's data as they read ours."""
    own = ["data=captions", "device=cpu"]
    few = ["task.limit=4", "task.baselines=[]", "task.changes=[]"]
    done = cli.run(compose([*own, "task=evaluate", *few]), tmp_path / "evaluate")
    assert {row["questions"] for row in done["table"]} == {4}
    few = ["task.samples=2", "task.layers=[2]", "task.keeps=[0.0]", "task.trials=0"]
    done = cli.run(compose([*own, "task=profile", *few]), tmp_path / "profile")
    assert done["prompts"] == 2
    few = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=2"]
    done = cli.run(compose([*own, "task=train", *few]), tmp_path / "train")
    assert done["rows"] == {"train": 4, "measured": 0}


# -- the packages in plugins/ ----------------------------------------------------------------------


def test_what_is_not_installed_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, in place of the names that are there."""
    monkeypatch.setitem(plugins.SHIPPED_APART, ("task", "absent"), "tokenreduce-absent")
    with pytest.raises(MissingConfigException) as caught:
        compose(["task=absent"])
    assert refusals.one_line(caught.value) == (
        "task=absent comes with the plug-in tokenreduce-absent, which is not installed: run "
        '"pip install ./plugins/tokenreduce-absent" in a checkout of tokenreduce'
    )
    with pytest.raises(MissingConfigException) as caught:
        compose(["task=absentt"])
    assert "no task 'absentt'" in refusals.one_line(caught.value)
    assert "tokenreduce-tiny" in str(plugins.not_installed("task", "pretrain"))


def test_every_option_of_plugins_is_told() -> None:
    """And nothing that is not there."""
    options = {
        (path.parent.name, path.stem): path.relative_to(APART).parts[0]
        for path in APART.glob("*/*/conf/*/*.yaml")
    }
    assert options == plugins.SHIPPED_APART
    assert len(options) >= 3


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
