"""What was written on the command line, made ready for Hydra, or refused with what was meant."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence

from hydra._internal.utils import get_args_parser

from tokenreduce.config import option_files
from tokenreduce.errors import Refused, did_you_mean

TEXT = ("image", "prompt", "model.id")
COMMANDS = ("list", "doctor", "version", "help")
"""Words that are answered without running a task; `--version` and `--help` are the same."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: flags first, free text in quotes, one run folder.

    Raises:
        Refused: a flag or a word that means nothing here, with what was meant.
    """
    words = [as_text(argument) for argument in arguments]
    return share_folder(quote_text(flags_first(words)))


def as_text(argument: str) -> str:
    """A prompt as the text that its bytes are in UTF-8, whatever the locale says.

    Where `LC_ALL=C` takes hold, Python reads every other letter as odd bytes (lone surrogates). In
    names of files these stay: any bytes may be one.

    Raises:
        Refused: bytes that are no text.
    """
    if argument.isascii() or not argument.startswith("prompt="):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise Refused(
            f"{argument!a} is not UTF-8 text: check how the terminal or the script is encoded"
        ) from None


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with every flag in front: `-m` may come between overrides.

    Raises:
        Refused: a flag that is not known or lacks its value, or a word that is no `key=value`.
    """
    flags, words = [], []
    known = takes_value()
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            words.append(argument)
            continue
        name, equals, _ = argument.partition("=")
        meant = [flag for flag in known if flag == name] or [
            flag for flag in known if name.startswith("--") and flag.startswith(name)
        ]
        if len(meant) != 1:
            hint = did_you_mean(name, known) or _as_option(name)
            raise Refused(f"no flag {name!r}{hint} (see tokenreduce --help)")
        flags.append(argument)
        if known[meant[0]] and not equals:
            value = next(rest, None)
            if value is None:
                raise Refused(f"{name} needs a value: {name} ...")
            flags.append(value)
    if not {"-sc", "--shell-completion"} & set(flags):  # whose words are half written
        for word in words:
            if reason := no_override(word):
                raise Refused(reason)
    return [*flags, *words]


def takes_value() -> dict[str, bool]:
    """Every flag, and whether a value follows it."""
    actions = get_args_parser()._actions
    return {flag: action.nargs != 0 for action in actions for flag in action.option_strings}


def no_override(word: str) -> str | None:
    """Why a word is no `key=value`, and what was meant; None where it is one."""
    key, equals, _ = word.partition("=")
    if equals:
        return f"{word!r} has no name before its '=': write key=value" if not key else None
    if word.startswith("~"):  # takes an option away
        return None
    start = f"{word!r} is no option, which are written key=value"
    chosen = [f"{group}={name}" for group, name, _ in option_files() if name == word]
    if chosen:
        return f"{start}; did you mean {' or '.join(map(repr, chosen[:3]))}?"
    if word in COMMANDS:
        return f"{word!r} is a command of its own: tokenreduce {word}"
    if word.lower().endswith(PICTURES):
        return f'{start}; did you mean image={word} prompt="..."?'
    names = [name for _, name, _ in option_files()]
    groups = {group for group, _, _ in option_files()}
    if word in groups:
        return f"{start}; {word}=... chooses one of: {', '.join(_options(word))}"
    return f"{start}{did_you_mean(word, [*COMMANDS, *groups, *names])} (see tokenreduce --help)"


def _options(group: str) -> Iterator[str]:
    return (name for of, name, _ in option_files() if of == group)


def _as_option(flag: str) -> str:
    """What a flag in the style of other programs stands for here: `--strategy`, `--seed`."""
    name = flag.lstrip("-").replace("-", "_")
    known = [*COMMANDS[:2], *{group for group, _, _ in option_files()}]
    known += ["seed", "image", "prompt", "device", "positions", "max_new_tokens"]
    if name not in known:
        return ""
    return f"; did you mean {name if name in COMMANDS else f'{name}=...'!r}?"


def quote_text(arguments: Sequence[str]) -> list[str]:
    """The arguments with free text in quotes, so that Hydra reads no grammar into it.

    `prompt=Is it red, or blue?` would be a sweep over two values, `image=my (1).png` an error. With
    `-m` everything is left as it is: there a comma is meant.
    """
    if sweeps(arguments):
        return list(arguments)
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in TEXT and value != "null" and value[:1] not in ("'", '"', "[", ""):
            # Hydra reads a backslash as itself, save before a quotation mark and at the end
            escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
            argument = f"{key}='{escaped}'"
        quoted.append(argument)
    return quoted


def sweeps(arguments: Sequence[str]) -> bool:
    """Whether several runs are asked for."""
    return any(word == "-m" or word in ("--multirun", "--multi") for word in arguments)


def share_folder(arguments: Sequence[str]) -> list[str]:
    """The arguments with one folder for all processes of a run, on however many machines.

    Each would name it by its own time, and be a second apart. The first of them names it for all,
    through the store that `torchrun` and `accelerate launch` keep for what they have started.

    Raises:
        Refused: several processes, no such store, and no folder given.
    """
    given = any(argument.startswith("hydra.run.dir=") for argument in arguments)
    if given or os.environ.get("WORLD_SIZE", "1") == "1":
        return list(arguments)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise Refused(
            "several processes need one folder, and their launcher gives them no way to agree on "
            "it: give hydra.run.dir=outputs/name, or start them with torchrun"
        )
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, not listed

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    own = time.strftime("%Y-%m-%d_%H-%M-%S")
    name = TCPStore(*place, is_master=False).compare_set("tokenreduce/folder", "", own).decode()
    return [*arguments, f"hydra.run.dir=outputs/${{task.name}}/{name}"]
