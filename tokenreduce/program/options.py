"""Options that the shell gives as text: of the kind and in the range that their defaults have."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from tokenreduce.checks import integer, one_of
from tokenreduce.config import build_reader, build_scheduler, build_strategy, option_files
from tokenreduce.errors import BadOption, did_you_mean
from tokenreduce.program import result

LEAST: Mapping[str, int] = {"seed": 0, "max_new_tokens": 1, "min_tokens": 0}
"""The least of options that are whole numbers, of every task."""
WORDS: Mapping[str, tuple[str, ...]] = {
    "positions": ("keep", "compact"),
    "logits": ("full", "text"),
}
"""What options are chosen from; null leaves them open."""
OWN = ("scheduler", "strategy", "data", "hydra")
"""Groups whose values are checked where their classes are built."""
CLOSED = ("task", "peft", "target")
"""Groups whose options are all in their files: what is added to them would be read by nothing."""
MOST_BYTES, MOST_VALUES = 2**18, 10**5
"""Of an option file, with what its anchors stand for; ours have some hundreds of values."""


def check(config: DictConfig, least: Mapping[str, int]) -> None:
    """Refuses options of the wrong kind or range, before a task loads anything.

    The classes of the strategy, the scheduler and the data are built for that, and check theirs.

    least: of the task's own options that are whole numbers, the least that each may be.

    Raises:
        ValueError, TypeError, KeyError: in one line, the option with its value and what it is.
    """
    for option, smallest in LEAST.items():
        integer(config.get(option, smallest), option, smallest)
    for option, smallest in least.items():
        integer(config.task.get(option, smallest), f"task.{option}", smallest)
    for option, words in WORDS.items():
        value = config.get(option)
        if value is not None:
            one_of(value, words, option)
    for option, value, usual in given():
        _of_kind(option, value if value is None else OmegaConf.select(config, option), usual)
    build_strategy(config)
    build_scheduler(config)
    build_reader(config)


def check_installed(choice: str, needs: Mapping[str, str]) -> None:
    """Refuses what needs a package that is not installed.

    choice: what is asked for, as it is written: `task=train`.
    needs: the packages, each with what `pip install` brings it by.

    Raises:
        BadOption: with that.
    """
    for package, source in needs.items():
        if importlib.util.find_spec(package) is None:
            raise BadOption(f'{choice} needs {package}: pip install "{source}"')


def given() -> Iterator[tuple[str, Any, Any]]:
    """Each option that the command line gives a value: its name, the words, and its default."""
    words = result.given()  # none where the configuration was composed in Python
    groups = [word for word in words if _name(word) in HydraConfig.get().runtime.choices]
    values = [word for word in words if word not in groups and not word.startswith("~")]
    values = [word for word in values if _name(word).partition(".")[0] not in OWN]
    if not values:
        return
    loader = GlobalHydra.instance().config_loader()
    usual = loader.load_configuration("config", overrides=groups, run_mode=RunMode.RUN)
    for word in values:
        name = _name(word)
        _known(name, usual)
        yield name, word.partition("=")[2], OmegaConf.select(usual, name, throw_on_missing=False)


def _known(option: str, usual: Any) -> None:
    """Refuses `+task.foo=1`, which Hydra adds and nothing reads; where no file lists any it may be.

    Raises:
        BadOption: with the options that there are.
    """
    group, _, key = option.partition(".")
    files = {name for of, name, _ in option_files() if of == group}
    choice = HydraConfig.get().runtime.choices.get(group)
    if group not in CLOSED or not key or "." in key or choice not in files:
        return
    known = set(usual[group])
    if key not in known:
        names = sorted(f"{group}.{one}" for one in known)
        hint = did_you_mean(option, names)
        raise BadOption(f"no option {option!r}{hint} (known: {', '.join(names)})")


def _name(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _of_kind(option: str, value: Any, usual: Any) -> None:
    """Refuses a value of another kind than its default; null is left to the task."""
    if value is None or usual is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(usual, bool):
        fits, noun = isinstance(value, bool), "true or false"
    elif isinstance(usual, int | float):
        fits = number and not math.isnan(value)
        noun = "a number"
        if isinstance(value, ListConfig):
            return  # one or several: the task says whether there may be
        if isinstance(usual, int) and not option.startswith("trainer."):  # shares of steps there
            fits, noun = isinstance(value, int) and number, "a whole number"
    elif isinstance(usual, ListConfig):
        fits, noun = isinstance(value, ListConfig), "a list, written [a,b]"
    else:
        return
    if not fits:
        raise BadOption(f"{option} must be {noun}, not {value!r}")


def check_files(words: Sequence[str]) -> None:
    """Refuses option files of one's own that are too large to be options, before they are read.

    Raises:
        BadOption: a file in a `--config-dir` of more than `MOST_BYTES`, or whose anchors stand for
            more than `MOST_VALUES` values.
    """
    flags = ("--config-dir", "-cd", "--config-path", "-cp")
    for place, flag in enumerate(words):
        name, equals, own = flag.partition("=")
        folder = Path(own if equals else (*words, "")[place + 1])
        if name in flags and folder.is_dir():
            for path in (*folder.glob("*.yaml"), *folder.glob("*/*.yaml")):
                _check_file(path)


def _check_file(path: Path) -> None:
    if (size := path.stat().st_size) > MOST_BYTES:
        raise BadOption(f"{path} has {size:,} bytes, more than an option file may: {MOST_BYTES:,}")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadOption(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    counts: dict[int, int] = {}
    try:
        values = _values(root, counts)
    except RecursionError:
        raise BadOption(f"{path} is nested too deeply, or in itself") from None
    if values > MOST_VALUES:
        raise BadOption(
            f"{path} stands for {values:.1e} values with its anchors written out, more than an "
            f"option file may: {MOST_VALUES:,}"
        )


def _values(node: Any, counts: dict[int, int]) -> int:
    """How many values a YAML node has with its anchors written out, each counted once."""
    if id(node) not in counts:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        pairs = isinstance(node, yaml.MappingNode)
        below = [one for pair in inner for one in pair] if pairs else inner
        counts[id(node)] = 1 + sum(_values(one, counts) for one in below)
    return counts[id(node)]
