"""Conditions that a question refuses: noted for this run, tried again by the next, agreed on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import tokenreduce as tr
from tokenreduce.data.items import Item
from tokenreduce.evaluation import runner as running
from tokenreduce.evaluation.asking import Protocol
from tokenreduce.evaluation.bars import Bars
from tokenreduce.evaluation.conditions import Condition
from tokenreduce.evaluation.records import Store
from tokenreduce.evaluation.runner import Runner
from tokenreduce.evaluation.shard import Shard
from tokenreduce.program import result, sweep
from tokenreduce.strategy import strategies

ITEMS = [Item(i, cast(Any, None), "kind", "What?" * (1 + i), "a", name=str(i)) for i in range(4)]
ALONE = Shard()
NULL = Condition(tr.Recipe(tr.Stride(), tr.Single(layer=2, keep=0.5), "keep"))


def refuses() -> None:
    strategies["strid"]  # raised on purpose, by the registry


def slips() -> None:
    torch.zeros(2).reshape(3, cast(Any, "x"))  # a fault, and a TypeError


def fine() -> None:
    pass


@dataclass(frozen=True)
class Together(Shard):
    """Threads in place of processes."""

    barrier: Any = None

    def wait(self) -> None:
        """Until all are here, or one has failed."""
        if self.barrier is not None:
            self.barrier.wait(timeout=20)


@pytest.fixture
def runner(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    """Makes runners that answer; what `said` of the question 2 does comes first."""
    monkeypatch.setattr(Runner, "_try", lambda self, condition, items: None)
    monkeypatch.setattr(Runner, "shares", lambda self, condition: [(2, 0.5)])

    def make(said: Callable[[], None], shard: Shard = ALONE) -> Runner:
        def ask(loaded: Any, condition: Any, items: Any, how: Any) -> Any:
            if any(item.name == "2" for item in items):
                loaded.said()
            return [{"item": item.name, "answer": "a"} for item in items]

        monkeypatch.setattr(running, "ask", ask)
        loaded = cast(Any, SimpleNamespace(said=said))
        how, store = Protocol(1, 4, "exact", {}), Store(tmp_path)
        return Runner(loaded, ITEMS, how, store, shard, timed=0, followed=0, bars=Bars(False))

    return make


def test_a_refusal_is_noted_and_what_is_needed_raises(runner: Callable[..., Runner]) -> None:
    one = runner(refuses)
    assert one.run(NULL) is False
    assert "strid" in one.impossible[NULL.key]
    with pytest.raises(ValueError, match="strid"):
        runner(refuses).run(NULL, needed=True)


def test_the_next_run_tries_again(runner: Callable[..., Runner]) -> None:
    assert runner(refuses).run(NULL) is False
    again = runner(fine)
    assert again.run(NULL, needed=True) is True
    assert again.impossible == {}
    assert list(again.store.answers(NULL.key)) == ["0", "1", "2", "3"]
    assert again.store.conditions()[NULL.key]["condition"]["strategy"] == {"name": "stride"}


def test_a_fault_is_no_refusal(runner: Callable[..., Runner]) -> None:
    with pytest.raises(TypeError):
        runner(slips).run(NULL)
    assert not runner(fine).store.conditions()


@pytest.mark.parametrize(("before", "now"), [(fine, refuses), (refuses, refuses), (refuses, fine)])
def test_all_processes_agree(
    runner: Callable[..., Runner], before: Callable[[], None], now: Callable[[], None]
) -> None:
    """One alone has the question that refuses; a note of an earlier run misleads none."""
    if before is refuses:
        runner(before).run(NULL)
    barrier, found = threading.Barrier(2), {}

    def work(rank: int) -> None:
        one = runner(now, Together(rank, 2, barrier=barrier))
        found[rank] = one.run(NULL), dict(one.impossible)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert found[0][0] is (now is fine)


def test_what_is_needed_raises_in_all_processes(runner: Callable[..., Runner]) -> None:
    barrier, found = threading.Barrier(2), {}

    def work(rank: int) -> None:
        try:
            runner(refuses, Together(rank, 2, barrier=barrier)).run(NULL, needed=True)
        except ValueError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {0, 1}
    assert found[0] == found[1]


def test_a_run_without_a_screen_says_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bars, draw = Bars(of=3), Condition(tr.Recipe(tr.Random(), tr.Single(), "keep", seed=4))
    answers = {NULL.key: {"0": {}, "1": {}}, draw.key: {"0": {}}}
    bars.resumed([NULL, draw], lambda key: answers[key], tmp_path)
    for condition in (NULL, draw):
        with bars.bar(condition, 4, 1):
            pass
    with Bars(shown=False).bar(NULL, 4, 1):
        pass
    assert capsys.readouterr().err.splitlines() == [
        f"tokenreduce: 3 answers found in {tmp_path}, going on",
        "tokenreduce: 1/3 stride, single: 3 questions",
        "tokenreduce: 2/3 random, single, seed 4: 3 questions",
    ]


def test_a_sweep_is_watched_among_its_overrides() -> None:
    """Hydra refuses overrides that options part."""
    assert sweep.watched(["task=evaluate", "-m"]) == [sweep.WATCH, "task=evaluate", "-m"]
    assert sweep.watched(["-m", "a=1,2"]) == ["-m", sweep.WATCH, "a=1,2"]
    assert sweep.watched(["task=evaluate"]) == ["task=evaluate"]


def test_every_file_of_a_run_is_named_once() -> None:
    numbers = {"files": ["out/a.png", "out/b.html"], "page": "out/b.html", "pictures": 3}
    many = {"panels": [f"out/panels/{i}.png" for i in range(9)]}
    found = result.files({**numbers, **many}, Path("out/result.json"))
    assert found == ["out/a.png", "out/b.html", "out/panels", "out/result.json"]
