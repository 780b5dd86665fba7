"""The laws of tokenreduce, on this strategy; and what is its own."""

import pytest
import torch
from tokenreduce_norm import Norm

from tokenreduce.config import build_scheduler, build_strategy, compose
from tokenreduce.testing import laws


@pytest.mark.parametrize("case", laws.cases("norm"), ids=str)
def test_laws(case: laws.Case) -> None:
    case.check(Norm())


@pytest.mark.parametrize("strategy", [Norm(), Norm(p=1), Norm(smallest=True)], ids=str)
def test_choices(strategy: Norm) -> None:
    laws.check_choices(strategy)


def test_the_option_is_the_class() -> None:
    """The schedule and the options stand in the class and in the YAML file: they are the same."""
    config = compose(["strategy=norm"])
    assert build_strategy(config) == Norm()
    assert build_scheduler(config) == Norm().scheduler()


def test_the_longest_stay() -> None:
    class Tokens:
        hidden = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 0.0]]])

    assert Norm().score(Tokens()).tolist() == [[5.0, 1.0, 6.0]]  # type: ignore[arg-type]
    assert Norm(p=1).score(Tokens()).tolist() == [[7.0, 1.0, 6.0]]  # type: ignore[arg-type]
    assert Norm(smallest=True).score(Tokens()).argmax() == 1  # type: ignore[arg-type]
