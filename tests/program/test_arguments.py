"""What was written on the command line: flags anywhere, and what a stray word was meant to be."""

from __future__ import annotations

import pytest

from tokenreduce.errors import Refused
from tokenreduce.program import arguments


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("strategy=a,b -m seed=0,1", "-m strategy=a,b seed=0,1"),
        ("seed=1 --cfg job strategy=a", "--cfg job seed=1 strategy=a"),
        ("seed=1 --config-dir=mine strategy=a", "--config-dir=mine seed=1 strategy=a"),
        ("-cd mine seed=1 --multi", "-cd mine --multi seed=1"),
        ("~debug seed=1", "~debug seed=1"),
        ("--help strategy=a", "--help strategy=a"),
        ("-sc query=bash", "-sc query=bash"),
    ],
)
def test_flags_stand_anywhere(given: str, read: str) -> None:
    assert arguments.flags_first(given.split()) == read.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "did you mean 'task=evaluate'?"),
        (["fastv"], "did you mean 'scheduler=fastv' or 'strategy=fastv'"),
        (["strategy"], "strategy=... chooses one of: cdpruner, "),
        (["cat.png"], 'did you mean image=cat.png prompt="..."?'),
        (["lisst"], "did you mean 'list'?"),
        (["seed=1", "list"], "'list' is a command of its own: tokenreduce list"),
        (["seed", "=", "1"], "'seed' is no option, which are written key=value"),
        (["=1"], "has no name before its '='"),
        (["--doctor"], "no flag '--doctor'; did you mean 'doctor'?"),
        (["--strategy=fastv"], "did you mean 'strategy=...'?"),
        (["--multirum"], "did you mean '--multirun'?"),
        (["--cfg"], "--cfg needs a value"),
        (["prompt=caf\udce9"], "is not UTF-8 text"),
    ],
)
def test_a_stray_word_is_told_what_was_meant(words: list[str], message: str) -> None:
    with pytest.raises(Refused) as caught:
        arguments.read(words)
    assert message in str(caught.value)


def test_text_is_text_under_every_locale() -> None:
    """Where `LC_ALL=C` takes hold, Python hands over each byte of a letter as a surrogate."""
    given = "prompt=où?".encode().decode("ascii", "surrogateescape")
    assert arguments.as_text(given) == "prompt=où?"
    assert arguments.as_text("image=caf\udce9.png") == "image=caf\udce9.png"
