"""Tells a mistake in what was asked for from a fault in the program, and says it in one line."""

from __future__ import annotations

import dis
from types import TracebackType

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tokenreduce import plugins
from tokenreduce.registry import did_you_mean


def is_refusal(error: BaseException) -> bool:
    """Whether `error` speaks about the user's input: raised on purpose, by us or by Hydra.

    A ValueError, TypeError or KeyError counts when a `raise` statement of tokenreduce or of a
    plug-in made it. The same class out of torch, or out of a slip such as `None + 1`, is a fault,
    and a fault needs its traceback.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    if not isinstance(error, ValueError | TypeError | KeyError) or error.__traceback__ is None:
        return False
    last = _last(error.__traceback__)
    module = str(last.tb_frame.f_globals.get("__name__", ""))
    ours = {"tokenreduce", "hydra", *(m.__name__.partition(".")[0] for m in plugins.load())}
    raised = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and module.partition(".")[0] in ours


def one_line(error: BaseException) -> str:
    """The message of `error` in one line, with the closest known name where one was mistyped."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return _unknown(group or "option", name, error.options)
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        parent = cause.parent_node
        if isinstance(parent, DictConfig):
            prefix = str(cause.full_key).removesuffix(str(cause.key))
            return _unknown("option", f"{prefix}{cause.key}", [f"{prefix}{key}" for key in parent])
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def _unknown(kind: str, name: str, known: list[str]) -> str:
    return f"no {kind} {name!r}{did_you_mean(name, known)} (known: {', '.join(sorted(known))})"


def _last(traceback: TracebackType) -> TracebackType:
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback
