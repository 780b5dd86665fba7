"""Settings of a reduction as plain data: every way to write them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tokenreduce as tr
from tokenreduce.integrations.settings import Settings, flat_settings, read_settings
from tokenreduce.testing.models import FAMILIES

WRITTEN = {
    "strategy": {"name": "fastv", "score": "received"},
    "scheduler": {"name": "explicit", "layers": [1, 3], "keeps": [0.5, 0.25]},
    "positions": "compact",
    "seed": 3,
    "min_tokens": 4,
}
YAML = """
strategy: {name: fastv, score: received}
scheduler: {name: explicit, layers: [1, 3], keeps: [0.5, 0.25]}
positions: compact
seed: 3
min_tokens: 4
"""
FLAT = {
    "strategy": "fastv",
    "strategy.score": "received",
    "scheduler": "explicit",
    "scheduler.layers": "[1, 3]",
    "scheduler.keeps": "[0.5, 0.25]",
    "positions": "compact",
    "seed": 3,
    "min_tokens": 4,
}


@pytest.fixture
def model() -> Any:
    return FAMILIES["llava"].model()


@contextmanager
def unused(reduction: tr.Reduction) -> Iterator[tr.Reduction]:
    """A reduction that nothing passes through, which it says when it is taken off."""
    with pytest.warns(tr.ReductionWarning, match="without having reduced"), reduction:
        yield reduction


def written(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def every_way(tmp_path: Path) -> list[Settings]:
    return [
        read_settings(WRITTEN),
        read_settings(json.dumps(WRITTEN)),
        read_settings(written(tmp_path, "a.json", json.dumps(WRITTEN))),
        read_settings(written(tmp_path, "a.yaml", YAML)),
        flat_settings(FLAT),
    ]


def test_every_way_says_the_same(tmp_path: Path, model: Any) -> None:
    ways = every_way(tmp_path)
    assert len(ways) == 5
    assert all(way == ways[0] for way in ways)
    with unused(ways[0].apply(model)) as reduction:
        assert reduction.strategy == tr.FastV(score="received")
        assert reduction.scheduler == tr.Explicit((1, 3), (0.5, 0.25))
        assert (reduction.positions, reduction.seed, reduction.min_tokens) == ("compact", 3, 4)


def test_options_without_a_schedule_change_the_strategys_own(model: Any) -> None:
    changed = flat_settings({"strategy": "fastv", "scheduler.keep": 0.25})
    with unused(changed.apply(model)) as reduction:
        assert reduction.scheduler == tr.Single(layer=2, keep=0.25)
    with unused(flat_settings({"strategy": "fastv"}).apply(model)) as reduction:
        assert reduction.scheduler == tr.FastV().scheduler()


def test_a_saved_reduction_is_loaded(tmp_path: Path, model: Any) -> None:
    schedule = tr.Single(layer=1, keep=0.5)
    with unused(tr.reduce(model, "random", schedule, seed=5)) as reduction:
        file = reduction.save(tmp_path)
    for path in (tmp_path, file):
        with unused(read_settings(str(path)).apply(model)) as loaded:
            assert (loaded.scheduler, loaded.seed) == (tr.Single(layer=1, keep=0.5), 5)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"strategy": "fastvv"}, KeyError, "no strategy 'fastvv'; did you mean 'fastv'"),
        ({"strategy": "fastv", "strategy.scor": 1}, TypeError, "no option 'scor'; did you mean"),
        ({"strategy": "fastv", "scheduler.kep": 1}, TypeError, "'single' has no option 'kep'"),
        ({"strategy": "fastv", "scheduler": "sngle"}, KeyError, "no scheduler 'sngle'"),
        ({"strategy": "fastv", "scheduler.keep": 2.5}, ValueError, "between 0 and 1, not 2.5"),
        ({"strategy": "fastv", "positions": "kep"}, ValueError, "no positions 'kep'"),
    ],
)
def test_what_the_registries_refuse(
    given: dict[str, Any], error: type[Exception], said: str, model: Any
) -> None:
    with pytest.raises(error, match=said):
        flat_settings(given).apply(model)
    with tr.reduce(model, "none"):  # nothing was left on the model
        pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strateg": "fastv"}, "no 'strateg'; did you mean 'strategy'.*known: strategy, scheduler"),
        ({"scheduler": {"keep": 0.5}}, "no strategy is named .*fastv"),
        ({"strategy": {"score": "last"}}, "no strategy is named"),
        ({"strategy": 3}, "must be a name, or a mapping of name and options, not 3"),
        ({"strategy": "fastv", "seed": "x"}, "seed must be a whole number, not 'x'"),
        ("{", "reduction_config is no valid JSON"),
        ("[1]", "is no file"),
    ],
)
def test_what_is_no_setting(given: Any, said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        read_settings(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{,}", "no valid JSON"),
        ("a.yaml", "strategy: [", "no valid YAML"),
        ("a.yaml", "- fastv", "must hold a mapping"),
        ("a.toml", "strategy = 'fastv'", "read from .json, .yaml or .yml"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_settings(written(tmp_path, name, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="give a JSON or YAML file"):
        read_settings(str(tmp_path / "missing.json"))
