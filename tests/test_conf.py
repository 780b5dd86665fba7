"""Every option of every group composes, builds, and says what the code says."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

import tokenreduce as tr
from tokenreduce.config import (
    RENAMED,
    build_reader,
    build_scheduler,
    build_strategy,
    compose,
    directory,
    model_spec,
    option_files,
    plain,
    refuse_code,
)
from tokenreduce.data.readers import readers
from tokenreduce.inference import loaded as loading

CONF = directory()
GROUPS = ("task", "model", "strategy", "scheduler", "data", "experiment")
OF_A_TASK = {"trainer": "task=train", "peft": "task=train", "target": "task=solve"}
"""Groups that a task brings with it."""
FILES = [
    (path.parent.name, path.stem)
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.stem not in RENAMED.get(path.parent.name, ())
]
REGISTRIES: dict[str, Any] = {
    "strategy": tr.strategies,
    "scheduler": tr.schedulers,
    "data": readers,
}
BUILD = {"strategy": build_strategy, "scheduler": build_scheduler, "data": build_reader}
BUILT = [(group, option) for group, option in FILES if group in REGISTRIES]


def read(group: str, option: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONF / group / f"{option}.yaml").read_text()))


def options(group: str) -> list[str]:
    return [option for g, option in FILES if g == group]


def shown(value: Any) -> Any:
    """An option as a file shows it: a scheduler inside another by its name and options."""
    if not isinstance(value, tr.Scheduler):
        return value
    return {"name": tr.schedulers.name_of(value), **dataclasses.asdict(value)}  # type: ignore[call-overload]


def test_the_matrix_is_not_empty() -> None:
    assert {group for group, _ in FILES} == {*GROUPS, *OF_A_TASK}
    assert len(options("strategy")) >= 7
    assert len(options("scheduler")) >= 7
    assert len(options("model")) >= 6


@pytest.mark.parametrize(("group", "option"), [one for one in FILES if one not in BUILT])
def test_every_option_composes(group: str, option: str) -> None:
    config = compose([*filter(None, [OF_A_TASK.get(group)]), f"{group}={option}"])
    if group != "experiment":
        assert config[group].name == read(group, option)["name"]
    OmegaConf.resolve(config)


def test_main_config_lists_every_group() -> None:
    rows = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    named = {key for row in rows if isinstance(row, dict) for key in row}
    assert set(GROUPS) <= named


@cache
def chosen(group: str, option: str) -> DictConfig:
    """The configuration with one option chosen; composed once, only to be read."""
    return compose([f"{group}={option}"])


@pytest.mark.parametrize(("group", "option"), BUILT)
def test_every_option_builds(group: str, option: str) -> None:
    """And what is built has the values that the file shows."""
    config = chosen(group, option)
    built = BUILD[group](config)
    OmegaConf.resolve(config.copy())
    values = dict(plain(config[group]))
    assert values["name"] == read(group, option)["name"]
    assert type(built) is REGISTRIES[group][values.pop("name")]
    assert {key: shown(getattr(built, key)) for key in values} == values


@pytest.mark.parametrize(("group", "option"), BUILT)
def test_options_show_every_parameter_with_its_default(group: str, option: str) -> None:
    """A file named as its class repeats the class's defaults."""
    values = dict(plain(chosen(group, option)[group]))
    name = values.pop("name")
    parameters = inspect.signature(REGISTRIES[group][name]).parameters
    assert list(values) == list(parameters)
    defaults = {key: shown(parameter.default) for key, parameter in parameters.items()}
    assert values == defaults or option != name


@pytest.mark.parametrize("strategy", [n for n, c in tr.strategies.items() if c.paper])
def test_a_papers_schedule_has_the_papers_name(strategy: str) -> None:
    """So that `strategy=random scheduler=dart` says what it is; a plug-in names its own."""
    kind = tr.strategies[strategy]
    if kind.__module__.startswith("tokenreduce."):
        assert build_scheduler(chosen("scheduler", strategy)) == kind().scheduler()
        assert chosen("strategy", strategy).scheduler == chosen("scheduler", strategy).scheduler


OLD = [(group, old, new) for group, names in RENAMED.items() for old, new in names.items()]


@pytest.mark.parametrize(("group", "old", "new"), OLD)
def test_an_old_name_works_and_warns_once(group: str, old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"{group}={old} is now {group}={new};") as said:
        config = compose([f"{group}={old}"])
    assert len(said) == 1
    assert config == chosen(group, new)


def test_an_old_name_inside_another_schedule_warns() -> None:
    with pytest.warns(FutureWarning, match="scheduler=fourth is now scheduler=pact"):
        config = compose(["scheduler=curriculum", "scheduler@scheduler.target=fourth"])
    assert config.scheduler.target.layer == 4


def test_old_names_are_not_shown() -> None:
    assert not {(group, old) for group, old, _ in OLD} & {(g, n) for g, n, _ in option_files()}
    assert {(group, new) for group, _, new in OLD} <= {(g, n) for g, n, _ in option_files()}


@pytest.mark.parametrize("group", REGISTRIES)
def test_everything_registered_has_an_option(group: str) -> None:
    shipped = {n for n, c in REGISTRIES[group].items() if c.__module__.startswith("tokenreduce.")}
    assert shipped <= set(options(group))


@pytest.mark.parametrize("strategy", options("strategy"))
def test_a_strategy_brings_its_papers_schedule(strategy: str) -> None:
    config = chosen("strategy", strategy)
    built = build_strategy(config)
    if built.reduces:  # without a reduction any schedule is nobody's
        assert build_scheduler(config) == built.scheduler()


def partners(own: str, option: str, other: str, full: bool) -> list[str]:
    """The options of another group to try one with: one, in turn; with `--full` all of them."""
    found = options(other)
    return found if full else [found[options(own).index(option) % len(found)]]


@pytest.mark.parametrize("strategy", options("strategy"))
def test_every_strategy_leaves_a_chosen_scheduler_alone(
    strategy: str, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--full", default=False)
    for scheduler in partners("strategy", strategy, "scheduler", full):
        check_both(strategy, scheduler)


@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_every_scheduler_on_the_command_line_wins(scheduler: str) -> None:
    check_both(*partners("scheduler", scheduler, "strategy", full=False), scheduler)


def check_both(strategy: str, scheduler: str) -> None:
    config = compose([f"scheduler={scheduler}", f"strategy={strategy}"])
    assert config.scheduler == chosen("scheduler", scheduler).scheduler
    for key, value in read("scheduler", scheduler).items():
        assert key == "defaults" or config.scheduler[key] == value
    assert config.strategy.name == read("strategy", strategy)["name"]


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_chooses_and_the_command_line_wins(experiment: str) -> None:
    rows = read("experiment", experiment)["defaults"]
    asked = {key.removeprefix("override /"): value for row in rows for key, value in row.items()}
    config = compose([f"experiment={experiment}"])
    for group, option in asked.items():
        assert config[group].name == read(group, option)["name"]
    for group in asked:
        other = next(o for o in options(group) if o != asked[group])
        config = compose([f"experiment={experiment}", f"{group}={other}"])
        assert config[group].name == read(group, other)["name"]


def test_no_file_sets_values_of_another_group() -> None:
    """A file has values of its own group; of others it may only choose an option."""
    assert [file for file in FILES if not minds_its_group(*file)] == []


def minds_its_group(group: str, option: str) -> bool:
    text = (CONF / group / f"{option}.yaml").read_text()
    values = read(group, option)
    rows = values.pop("defaults", [])
    keys = [key for row in rows if row != "_self_" for key in row]
    if group == "experiment":
        return not values and all(key.startswith("override /") for key in keys)
    allowed = {
        "strategy": ["override /scheduler@_global_.scheduler"],
        "scheduler": ["/scheduler@target"],
        "task": [f"/{n}@_global_.{n}" for n, t in OF_A_TASK.items() if t == f"task={option}"],
    }
    return "@package" not in text and keys in ([], allowed.get(group))


def test_no_file_names_code() -> None:
    paths = sorted(CONF.rglob("*.yaml"))
    assert [path for path in paths if "_target_" in path.read_text()] == []
    for path in paths:
        refuse_code(OmegaConf.load(path))


@pytest.mark.parametrize(
    "word", ["+_target_=os.system", "+strategy.a._target_=x", "image=[{_target_: x}]"]
)
def test_code_is_found_anywhere(word: str) -> None:
    with pytest.raises(ValueError, match=r"_target_ is refused"):
        refuse_code(compose([word]))


@pytest.mark.parametrize("model", options("model"))
def test_models_are_named_as_their_file_and_may_be_replaced(model: str) -> None:
    config = compose([f"model={model}", "model.id=org/other", "model.revision=abc"])
    assert (config.model.name, config.model.id) == (model, "org/other")
    assert loading.model_source(model_spec(config)) == "org/other"
    assert config.model.trust_remote_code is False
    assert config.model.dtype in loading.DTYPES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=fastv", "strategy.score=lst"], "did you mean 'last'"),
        (
            ["strategy=fastv", "strategy.score=3"],
            "strategy 'fastv': score must be one of last, received, not 3",
        ),
        (["scheduler.ratio=abc"], "ratio must be a number, not 'abc'"),
        (["scheduler.ratio=true"], "ratio must be a number, not True"),
        (["scheduler=single", "scheduler.keep=1.5"], "keep must be .* between 0 and 1, not 1.5"),
        (["scheduler=single", "scheduler.layer=-1"], "-1"),
        (["scheduler=explicit", "scheduler.layers=[8]"], "one length"),
        (["strategy.name=fasttv"], "no strategy 'fasttv'; did you mean 'fastv'"),
        (["+strategy.scor=last"], "has no option 'scor'"),
        (["data.size=2.5"], "data 'shapes': size must be a whole number, not 2.5"),
        (["data=llava", "data.path=7"], "path must be a word or null, not 7"),
        (["data.name=shape"], "no data 'shape'; did you mean 'shapes'"),
    ],
)
def test_wrong_values_are_refused_when_they_are_built(words: list[str], message: str) -> None:
    config = compose(words)
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        build_strategy(config), build_scheduler(config), build_reader(config)


@pytest.mark.slow
def test_a_wheel_finds_its_configs(tmp_path: Path) -> None:
    """In a wheel `conf/` lies inside the package: `python -m tokenreduce` runs from anywhere."""
    package = tmp_path / "site" / "tokenreduce"
    source = Path(tr.__file__).parent
    heavy = shutil.ignore_patterns("checkpoint", "__pycache__", "testing", "engine")
    shutil.copytree(source, package, ignore=heavy)
    if not (package / "conf").exists():
        shutil.copytree(CONF, package / "conf")
    (tmp_path / "elsewhere").mkdir()
    run = subprocess.run(
        [sys.executable, "-m", "tokenreduce", "--cfg", "job", "strategy=vtw"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path / "elsewhere",
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )
    assert "name: vtw" in run.stdout
    assert "layer: 0.5" in run.stdout
