"""Where the command line's configuration lies, and how its names become objects.

A config names things (`name: fastv`) and gives their options; the registries turn names into
objects. No config can name code: `_target_` is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.resolvers.oc import env as environment

from tokenreduce import plugins
from tokenreduce.errors import BadOption, Missing
from tokenreduce.inference.spec import ModelSpec

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath

    from tokenreduce.data.readers import Reader
    from tokenreduce.recipe import Recipe
    from tokenreduce.registry import Registry
    from tokenreduce.scheduler import Scheduler
    from tokenreduce.strategy import Strategy


RENAMED: Mapping[str, Mapping[str, str]] = {
    "scheduler": {
        "early_fifth": "dart",
        "fit": "fitprune",
        "fourth": "pact",
        "input_fifth": "hired",
        "input_ninth": "cdpruner",
        "input_tenth": "divprune",
        "input_third": "visionzip",
        "sparse": "sparsevlm",
        "withdraw": "vtw",
    },
}
"""Group -> old name -> new name of options; old names work, and warn, for one minor version."""


def directory() -> Path:
    """The folder of configs: inside the package in a wheel, next to it in a checkout.

    Raises:
        FileNotFoundError: neither holds a `config.yaml`: the installation is broken.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise Missing(
        f"no config.yaml in {here / 'conf'} or {here.parent / 'conf'}: reinstall tokenreduce"
    )


def option_files() -> Iterator[tuple[str, str, Path]]:
    """Group, name and file of every option, `strategy=fastv` for one: ours, then the plug-ins'.

    Names that are going are left out.
    """
    for folder in (directory(), *(folder for _, folder in plugins.config_folders())):
        for path in sorted(folder.glob("*/*.yaml")):
            group, name = path.parent.name, path.stem
            if group != "hydra" and name not in RENAMED.get(group, ()):
                yield group, name, path


def refuse_shipped(group: str, name: str, option: str) -> None:
    """Refuses the name of an option that is there already, for a file that a run is to write.

    Raises:
        ValueError: it would be chosen instead of that file.
    """
    if any((group, name) == (known, one) for known, one, _ in option_files()):
        raise BadOption(
            f"{option}={name} is an option that ships, which would be chosen instead: take "
            "another name"
        )


class PluginConfigs(SearchPathPlugin):  # type: ignore[misc]  # hydra has no types
    """Adds the `conf/` of every plug-in after ours, in programs whose main config is ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append, never prepend: a plug-in adds options, it does not replace ours."""
        ours = str(directory())
        if not any(part.path.removeprefix("file://") == ours for part in search_path.get_path()):
            return  # Hydra asks every registered plug-in in every Hydra program of the process
        for name, folder in plugins.config_folders():
            search_path.append(provider=f"plug-in {name}", path=f"file://{folder}")


def register() -> None:
    """Let Hydra find the options of plug-ins; only our own program and `compose` call this."""
    Plugins.instance().register(PluginConfigs)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """What the command line would run with these arguments, for notebooks and tests.

    overrides: as on the command line, e.g. `["strategy=fastv", "scheduler.keep=0.25"]`.
    """
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(directory())):
        config = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    warn_renamed(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return config


def warn_renamed(choices: Mapping[str, str | None]) -> None:
    """Warn of options that are chosen by a name that is going, each once.

    choices: group -> option, as Hydra has composed them; a group may name its place, `group@place`.
    """
    for group, name in choices.items():
        plain_group = group.partition("@")[0]
        new = RENAMED.get(plain_group, {}).get(str(name))
        if new is not None:
            warnings.warn(
                f"{plain_group}={name} is now {plain_group}={new}; the old name goes with the next "
                "minor version",
                FutureWarning,
                stacklevel=3,
            )


def build_strategy(config: DictConfig) -> Strategy:
    """The strategy that `config.strategy` names, with its options."""
    strategy: Strategy = build(known("strategy"), config.strategy)
    return strategy


def build_scheduler(config: DictConfig) -> Scheduler:
    """The scheduler that `config.scheduler` names, with its options."""
    scheduler: Scheduler = build(known("scheduler"), config.scheduler)
    return scheduler


def build_recipe(config: DictConfig, scheduler: Scheduler | None = None) -> Recipe:
    """With what a configuration reduces a model: strategy, scheduler, and their options.

    The logits are of all positions where it says nothing.

    scheduler: in place of the one that the configuration names.
    """
    from tokenreduce.recipe import Recipe

    options = {name: config[name] for name in ("positions", "seed", "min_tokens")}
    options["logits"] = config.logits or "full"
    scheduler = build_scheduler(config) if scheduler is None else scheduler
    return Recipe(build_strategy(config), scheduler, **options)


def build_reader(config: DictConfig) -> Reader:
    """What reads the data that `config.data` names, with its options."""
    reader: Reader = build(known("data"), config.data)
    return reader


def model_spec(config: DictConfig) -> ModelSpec:
    """The model that `config.model` names, with the device, the attention and the seed of a run."""
    model = config.model
    name, shape = model.get("id"), model.get("shape")
    revision, base = model.get("revision"), model.get("base")
    sizes: Any = None if shape is None else OmegaConf.to_container(shape, resolve=True)
    return ModelSpec(
        None if name is None else str(name),
        str(model.get("name", "tiny")),
        sizes,
        dtype=str(model.get("dtype", "auto")),
        attention=str(config.attention),
        device=str(config.device),
        revision=None if revision is None else str(revision),
        trust_remote_code=bool(model.get("trust_remote_code", False)),
        base=None if base is None else str(base),
        seed=int(config.get("seed", 0)),
    )


REGISTRIES = {
    "strategy": ("tokenreduce.strategy", "strategies"),
    "scheduler": ("tokenreduce.scheduler", "schedulers"),
    "adapter": ("tokenreduce.adapter", "adapters"),
    "data": ("tokenreduce.data.readers", "readers"),
}
"""The module and the name of the registry of every kind of thing that is made by its name."""


def known(kind: str) -> Registry[Any]:
    """The registry of a kind in `REGISTRIES`, with what ships and what plug-ins add."""
    module, name = REGISTRIES[kind]
    plugins.load()
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def build(registry: Registry[Any], node: Any) -> Any:
    """The object that a config node stands for: its `name`, made with every other key.

    Raises:
        KeyError: nothing is registered under that name.
        TypeError: the class has no such option.
        ValueError: an option of the wrong kind, one that is missing, or one that the class refuses.
    """
    options = plain(node)
    name = str(options.get("name"))
    for key, parameter in inspect.signature(registry[name]).parameters.items():
        if key not in options and parameter.default is parameter.empty:
            raise BadOption(f"{registry.kind} {name!r} needs {registry.kind}.{key}=...")
    return registry.parse(options)


def plain(node: Any) -> Mapping[str, Any]:
    """A config node as plain Python data, with interpolations resolved and lists as tuples."""
    data = OmegaConf.to_container(node, resolve=True)
    if not isinstance(data, dict):
        raise BadOption(f"expected `name:` and options, not {data!r}")
    return {str(key): tuple(v) if isinstance(v, list) else v for key, v in data.items()}


def public(config: DictConfig, apart: bool = False) -> dict[str, Any]:
    """A configuration as plain data to be written down: what the environment gave is not in it.

    `${oc.env:TOKEN}` may be a password. It stays as it was written, and so does whatever refers to
    it.

    Args:
        config: any part of it.
        apart: tell one value of the environment from another, by a few digits of its hash.
    """

    def unresolved(*given: Any) -> str:
        known = hashlib.sha256(str(environment(*given)).encode()).hexdigest()[:8] if apart else ""
        return f"${{oc.env:{','.join(map(str, given))}}}{known and '#'}{known}"

    OmegaConf.register_new_resolver("oc.env", unresolved, replace=True)
    try:
        found: Any = OmegaConf.to_container(config, resolve=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", environment, replace=True)
    return dict(found)


def refuse_code(config: DictConfig) -> None:
    """Stop a configuration that names code to run.

    Raises:
        ValueError: `_target_` somewhere in it.
    """
    for place in _targets(OmegaConf.to_container(config, resolve=False), ""):
        raise BadOption(
            f"{place} is refused: a config chooses registered names (`name: ...`) and their "
            "options, it cannot name code to run; register a class instead"
        )


def _targets(data: Any, place: str) -> Iterator[str]:
    """The places of every `_target_` in nested dicts and lists, as dotted paths."""
    if isinstance(data, dict):
        for key, value in data.items():
            here = f"{place}.{key}".lstrip(".")
            if key == "_target_":
                yield here
            yield from _targets(value, here)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from _targets(value, f"{place}[{i}]")
