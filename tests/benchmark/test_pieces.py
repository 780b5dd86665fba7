"""The measuring code measures: clocks, intervals, bytes, prompts; its own faults would not show."""

from __future__ import annotations

import time

import pytest
import torch

import tokenreduce as tr
from tests.benchmark.autograd import stored_bytes
from tests.pairwise import in_turn
from tokenreduce.benchmarking.allocation import cache_bytes, peak_bytes
from tokenreduce.benchmarking.breakeven import find
from tokenreduce.benchmarking.pixels import FAMILIES as KNOWN
from tokenreduce.benchmarking.pixels import noise
from tokenreduce.benchmarking.rounds import Candidate, Interleaved, compared
from tokenreduce.benchmarking.synthetic import MEASURES, MarkedPrompt, picture
from tokenreduce.evidence import TOWER, at_layer
from tokenreduce.inference.clock import Clock, Times, interval, paired
from tokenreduce.testing.models import FAMILIES

CPU = torch.device("cpu")
MEBIBYTE = 2**18  # fp32 numbers


def test_a_clock_of_one_thread_counts_work_and_not_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    times = Times(Clock(CPU))
    times.measure(lambda: time.sleep(0.05))
    assert times.clock[0] < 0.02
    assert times.wall[0] >= 0.05


@pytest.mark.parametrize(("wall", "threads"), [(True, 1), (False, 2)])
def test_elsewhere_the_clock_is_the_wall(
    wall: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    times = Times(Clock(CPU, wall))
    times.measure(lambda: time.sleep(0.05))
    assert times.clock[0] >= 0.05


def test_ratios_are_of_neighbours() -> None:
    clock = Clock(CPU)
    ours, theirs = Times(clock, [1, 2, 9], [1, 1, 1]), Times(clock, [2, 4, 6], [2, 2, 2])
    found = paired(ours, theirs)
    assert found["of_minima"] == 0.5
    assert found["median_of_pairs"] == 0.5
    assert found["of_medians"] == 0.5
    assert found["wall_of_minima"] == 0.5


@pytest.mark.parametrize(
    ("n", "rank", "coverage"),
    [(1, 1, 0.0), (5, 1, 0.9375), (6, 1, 0.96875), (9, 2, 0.9609375), (20, 6, 0.9586105)],
)
def test_an_interval_is_that_of_the_sign_test(n: int, rank: int, coverage: float) -> None:
    """Ranks and coverage as in tables of distribution-free intervals of a median."""
    found = interval([float(i) for i in range(n, 0, -1)])
    assert (found.low, found.high) == (rank, n + 1 - rank)
    assert found.coverage == pytest.approx(coverage)


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 9, generator=generator).exp()
    bounds = [interval(row.tolist()) for row in draws]
    hit = sum(found.low <= torch.tensor(0.5).exp() <= found.high for found in bounds) / len(bounds)
    assert hit == pytest.approx(bounds[0].coverage, abs=0.015)


# -- bytes -----------------------------------------------------------------------------------------


def test_the_peak_is_what_lives_at_once() -> None:
    def three() -> torch.Tensor:
        first = torch.empty(4 * MEBIBYTE)
        second = torch.empty(2 * MEBIBYTE)
        del first, second
        return torch.empty(MEBIBYTE)

    assert peak_bytes(three, CPU) == 6 * 2**20


def test_the_peak_counts_what_kernels_need_within() -> None:
    """A matrix by its own transpose's copy: the copy is nobody's result."""
    x = torch.ones(MEBIBYTE // 256, 256)
    assert peak_bytes(lambda: (x + 0).sum(), CPU) >= 2**20
    assert peak_bytes(lambda: x.view(-1), CPU) == 0


def test_the_peak_is_unknown_elsewhere() -> None:
    assert peak_bytes(lambda: None, torch.device("meta")) is None


def test_stored_bytes_are_counted_once_and_without_weights() -> None:
    weight = torch.ones(64, 64, requires_grad=True)
    x = torch.ones(8, 64, requires_grad=True) + 0
    assert stored_bytes(lambda: (x @ weight).sum() + (x * x).sum()) == 8 * 64 * 4


def test_a_cache_is_weighed_with_what_its_views_keep_alive() -> None:
    class Layer:
        keys = torch.empty(1, 2, 100, 8)[:, :, :10]
        values = torch.empty(1, 2, 10, 8)

    class Cache:
        layers = (Layer, Layer)

    assert cache_bytes(Cache) == 4 * (1600 + 160)  # both layers show the same storages


# -- prompts and rounds ----------------------------------------------------------------------------


@pytest.mark.parametrize("visual", [1, 4, 5, 16, 144, 577])
def test_a_picture_has_every_token_and_measure(visual: int) -> None:
    made = picture(visual)
    assert len(made) == visual
    assert set(made.measures) == set(MEASURES) == set(TOWER)


def test_a_picture_has_what_a_strategy_names_in_a_layer() -> None:
    name = at_layer("tower_attention", 1 / 3)
    made, plain = picture(16, needs=[name, "keys"]), picture(16)
    assert set(made.measures) == {*TOWER, name}
    assert made.measures[name].shape == made.measures["tower_attention"].shape
    assert all(made.measures[one].equal(x) for one, x in plain.measures.items())


@pytest.mark.parametrize("name", KNOWN)
def test_a_picture_of_noise_fits_its_model(name: str) -> None:
    """Placeholders and features agree, else the model itself refuses."""
    model = FAMILIES[name].model()
    given = noise(model, 12)
    assert given is not None
    with tr.reduce(model, "stride", positions="keep") as reduction, torch.inference_mode():
        model(**given)
        report = reduction.report
    assert report.visual_tokens[0] + 12 == given["input_ids"].shape[1]
    assert report.applied == [True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    in_turn(["llama-gqa", "llava", "qwen2_5_vl"], ["pyramid_drop", "vispruner"]),
)
def test_a_race_weighs_what_the_report_says(name: str, method: str) -> None:
    model = FAMILIES[name].model()
    strategy = tr.strategies.build(method)
    run = Interleaved(
        model, MarkedPrompt(40, 16, 2), [Candidate(method, tr.Recipe(strategy))], new_tokens=2
    ).run(3)
    (row,) = run.rows()
    report = run.arms[1].report
    assert report is not None
    assert row["tokens_per_layer"] == [tokens[0] for tokens in report.tokens_per_layer]
    assert row["kv_bytes_full"] == report.kv_bytes_full
    assert row["kv_bytes"] == report.kv_bytes
    assert 0 < row["kept_share"] < 1
    assert row["flops_share"]["causal"] < 1
    assert row["peak_bytes_full"] > row["kv_bytes_full"]
    assert len(run.arms[1].step.clock) == len(run.arms[0].step.clock) == 6
    assert row["prefill"]["rounds"] == 3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_steps_of_a_round_count_once_in_an_interval() -> None:
    clock = Clock(CPU)
    ours = Times(clock, [1.0, 2.0, 9.0, 4.0, 4.0, 4.0], [1.0] * 6)
    theirs = Times(clock, [1.0] * 6, [1.0] * 6)
    found = compared(ours, theirs, each=3)
    assert (found["rounds"], found["interval"]) == (2, [2.0, 4.0])
    assert found["coverage"] == 0.5
    assert compared(ours, theirs)["interval"] == [1.0, 9.0]


@pytest.mark.slow
def test_everyone_leads_a_round() -> None:
    """The order moves on: nobody always follows the same."""
    model, order = FAMILIES["llama-gqa"].model(), []
    those = [Candidate(name, tr.Recipe.parse(name)) for name in ("random", "stride")]
    run = Interleaved(model, MarkedPrompt(20, 8), those)
    plain = run.run_arm
    run.run_arm = lambda arm: (order.append(arm.candidate.name), plain(arm))
    run.run(3, memory=False)
    assert order[:3] == ["unreduced", "random", "stride"]  # they warm up
    assert order[3:] == [
        *("unreduced", "random", "stride"),
        *("random", "stride", "unreduced"),
        *("stride", "unreduced", "random"),
    ]


# -- break-even ------------------------------------------------------------------------------------


def pays_from(least: int, spread: float = 0.01):
    asked = []

    def measure(visual: int):
        asked.append(visual)
        ratio = (least / visual) ** 0.1 - 1e-6
        return {"ratio": ratio, "interval": [ratio - spread, ratio + spread]}

    return measure, asked


def test_break_even_is_closed_in_on() -> None:
    measure, asked = pays_from(200, spread=0)
    found = find([16, 64, 256, 1024], measure)
    assert found.tokens is not None
    assert 200 <= found.tokens <= 220
    assert len(asked) <= 8
    assert [row["visual_tokens"] for row in found.rows] == sorted(asked)
    assert f"set min_tokens={found.tokens}" in found.advice()


def test_a_reduction_that_may_not_pay_does_not() -> None:
    """The whole interval must be below 1, so that noise does not recommend."""
    exact, _ = pays_from(200, spread=0)
    wide, _ = pays_from(200, spread=0.05)
    sure, unsure = find([16, 4096], exact, 8).tokens, find([16, 4096], wide, 8).tokens
    assert sure is not None
    assert unsure is not None
    assert unsure > 1.3 * sure


def test_break_even_at_the_ends() -> None:
    always = find([16, 64], pays_from(2)[0])
    assert (always.tokens, always.least) == (16, True)
    never = find([16, 64], pays_from(1000)[0])
    assert never.tokens is None
    assert "min_tokens=65" in never.advice()


def test_a_larger_count_that_does_not_pay_undoes_a_smaller_one() -> None:
    ratios = {16: 0.5, 64: 1.2, 256: 0.5}

    def measure(n: int):
        ratio = ratios.get(n, 0.5)
        return {"ratio": ratio, "interval": [ratio, ratio]}

    found = find([16, 64, 256], measure, steps=0)
    assert found.tokens == 256
