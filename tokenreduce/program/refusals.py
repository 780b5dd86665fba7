"""Tells a mistake in what was asked for from a fault in the program, and says it in one line."""

from __future__ import annotations

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tokenreduce import plugins
from tokenreduce.config import option_files
from tokenreduce.errors import Refused, did_you_mean, in_one_line, is_refused
from tokenreduce.program import ending

ABOUT_FILES = HydraException | OmegaConfBaseException | yaml.YAMLError
"""What Hydra raises about the words of the command line and about option files."""


def is_refusal(error: BaseException) -> bool:
    """Whether `error` speaks about the user's input, as we, a method's author or Hydra say it.

    A full disk and a folder that may not be written are no fault of the program.
    """
    about = isinstance(error, ABOUT_FILES) or is_refused(error, also=("hydra",))
    return about or ending.of_the_disk(error) is not None


def one_line(error: BaseException) -> str:
    """The message of `error` in one line, with the closest known name where one was mistyped."""
    if isinstance(error, MissingConfigException) and error.options:
        missing = str(error.missing_cfg_file)
        if missing.startswith("model/") and missing.count("/") > 1:  # none of ours has a slash
            path = missing.removeprefix("model/")
            return (
                f"no model {path!r} among the options: a checkpoint of the hub or of this disk is "
                f"model.id={path}"
            )
        group, _, name = missing.rpartition("/")
        elsewhere = plugins.not_installed(group, name)
        return elsewhere or _unknown(group or "option", name, error.options)
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        parent = cause.parent_node
        if isinstance(parent, DictConfig):
            return _no_option(str(cause.full_key), str(cause.key), parent)
    if not isinstance(error, Refused) and (said := ending.of_the_disk(error)):
        return said
    return in_one_line(error)


def _no_option(full: str, key: str, parent: DictConfig) -> str:
    """That there is no such option here, and where there is one of that name."""
    prefix = full.removesuffix(key)
    known = [f"{prefix}{name}" for name in parent]
    group = prefix.rstrip(".")
    having = [option for option in _having(group, key) if option != parent.get("name")]
    if not having:
        return _unknown("option", f"{prefix}{key}", known)
    either = f"{', '.join(having[:-1])} or {having[-1]}" if having[1:] else having[0]
    return (
        f"{group}={parent.get('name')} has no option {key!r}: choose {group}={either}, which "
        f"{'have' if having[1:] else 'has'} it (known here: {', '.join(sorted(known))})"
    )


def _having(group: str, key: str) -> list[str]:
    """The options of a group that have a value called `key`; presets of the same class left out."""
    found = []
    for of, name, path in option_files():
        if of == group:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(values, dict) and values.get("name") == name and key in values:
                found.append(name)
    return found


def _unknown(kind: str, name: str, known: list[str]) -> str:
    return f"no {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(sorted(known))})"
