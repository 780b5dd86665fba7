"""`task=benchmark`: what it measures, writes, compares and refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console

import tokenreduce as tr
from tokenreduce.benchmarking import against
from tokenreduce.benchmarking import plot as plots
from tokenreduce.benchmarking import table as tables
from tokenreduce.benchmarking.candidates import schedules_at
from tokenreduce.benchmarking.peers import peer, recorded
from tokenreduce.benchmarking.subjects import subject
from tokenreduce.config import compose, model_spec, plain
from tokenreduce.inference.clock import coverage
from tokenreduce.inference.loaded import load_random, model_source
from tokenreduce.program import result
from tokenreduce.tasks.benchmark import benchmark, compared, entered_by
from tokenreduce.testing.models import FAMILIES

SHAPE = [
    "task=benchmark",
    "model=llama_16x512",
    "model.shape.num_hidden_layers=4",
    "model.shape.hidden_size=32",
    "model.shape.intermediate_size=48",
    "model.shape.num_attention_heads=4",
    "model.shape.num_key_value_heads=4",
    "device=cpu",
]
QUICK = ["task.rounds=2", "task.new_tokens=1", "task.break_even=null", "task.plots=false"]
TINY = ["task=benchmark", "device=cpu", *QUICK]


def run(folder: Path, *words: str) -> dict[str, Any]:
    """What a run of the command line leaves behind."""
    folder.mkdir(exist_ok=True)
    config = compose(list(words))
    numbers = benchmark(config, folder)
    path = result.write(config, folder, numbers, seconds=0.0)
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("first")
    shares = ["task.keeps=[0.8,0.5]", "task.visual=[40,80]", "task.batches=[1,2]"]
    return run(folder, *SHAPE, *QUICK, *shares) | {"path": str(folder / "result.json")}


@pytest.mark.slow
def test_every_strategy_stands_at_every_share_count_and_batch(record: dict[str, Any]) -> None:
    cells = {
        (row["strategy"], row["asked_share"], row["visual_tokens"], row["batch"])
        for row in record["rows"]
    }
    names = ("pyramid_drop", "random", "stride")
    assert cells == {
        (name, share, visual, batch)
        for name in names
        for share in (0.8, 0.5)
        for visual in (40, 80)
        for batch in (1, 2)
    }
    assert len(record["rows"]) == len(cells)


def test_shares_are_what_is_kept(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        assert row["kept_share"] == pytest.approx(row["asked_share"], abs=0.02)
        assert row["kept_share"] <= row["asked_share"]


def test_bytes_are_those_of_the_tokens(record: dict[str, Any]) -> None:
    for row in record["rows"]:
        a_token = 2 * 32 * 4 * row["batch"]
        assert row["kv_bytes"] == a_token * sum(row["tokens_per_layer"])
        assert row["kv_bytes_full"] == a_token * 4 * (row["visual_tokens"] + 64)
        assert row["peak_bytes"] > row["kv_bytes"]
        assert row["peak_bytes_full"] > row["kv_bytes_full"]


def test_a_record_says_how_it_was_made(record: dict[str, Any]) -> None:
    assert record["subject"]["model"] == "llama_16x512"
    assert record["subject"]["weights"] == "random"
    assert record["subject"]["hidden"] == 32
    assert record["versions"]["torch"]
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["config"]["seed"] == 0
    assert record["clock"] in ("process CPU time", "wall time")
    assert record["command"].startswith("tokenreduce ")


@pytest.mark.slow
def test_the_embedded_model_runs_its_tower_too(tmp_path: Path) -> None:
    found = run(tmp_path, *TINY, "task.visual=[20]", "strategy=fastervlm", "task.baselines=[]")
    whole, marked = found["rows"]
    assert (whole["tower"], whole["visual_tokens"]) == (True, 144)
    assert (marked["tower"], marked["visual_tokens"]) == (False, 20)
    assert found["subject"]["weights"] == "stored"


@pytest.mark.slow
def test_break_even_and_pictures(tmp_path: Path) -> None:
    words = ["task.visual=[40]", "task.break_even=[8,40]", "task.plots=true"]
    found = run(tmp_path, *SHAPE, *QUICK, *words)
    even = found["break_even"]
    assert {8, 40} <= {row["visual_tokens"] for row in even["rows"]}
    assert "min_tokens=" in even["advice"]
    assert len(found["pictures"]) == 2
    assert all((tmp_path / name).stat().st_size > 5000 for name in found["pictures"])


@pytest.mark.parametrize("family", ["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_a_folder_with_random_weights(family: str, tmp_path: Path) -> None:
    """A config.json is enough."""
    folder = tmp_path / "model"
    FAMILIES[family].model().config.save_pretrained(folder)
    words = [f"model.id={folder}", "task.weights=random", "task.visual=[24]"]
    found = run(tmp_path / "run", *TINY, *words, "task.baselines=[stride]")
    assert [row["tower"] for row in found["rows"]] == [True, True, False, False]
    assert found["subject"]["hidden"] == 32


@pytest.mark.parametrize("model", ["llava_1_5_7b", "llava_next_7b", "qwen2_5_vl_7b"])
def test_presets_build_with_random_weights(model: str) -> None:
    """Their shapes, made small on the command line, are models that an adapter reads."""
    text = "model.shape.text_config"
    small = [f"{text}.hidden_size=64", f"{text}.num_hidden_layers=4", f"{text}.vocab_size=160000"]
    small += [f"{text}.intermediate_size=96", f"{text}.num_attention_heads=4"]
    small += [f"{text}.num_key_value_heads=4", "device=cpu", "model.dtype=float32"]
    vision = "model.shape.vision_config"
    small += [f"{vision}.hidden_size=64", f"{vision}.intermediate_size=96"]
    if model == "qwen2_5_vl_7b":
        small += [f"{vision}.depth=2", f"{vision}.out_hidden_size=64", f"{vision}.num_heads=4"]
        small += [f"{vision}.fullatt_block_indexes=[1]"]
        small += [f"{text}.rope_parameters.mrope_section=[2,3,3]"]
    else:
        small += [f"{vision}.num_hidden_layers=2", f"{vision}.num_attention_heads=4"]
    config = compose(["task=benchmark", f"model={model}", "task.weights=random", *small])
    one = subject(model_spec(config), config.task.weights, text=int(config.task.text))
    (seen, marked) = one.prompts(None, 16, [1], 0)
    counts = {"llava_1_5_7b": 576, "llava_next_7b": 2928, "qwen2_5_vl_7b": 576}
    assert seen.visual == marked.visual == counts[model]
    with tr.reduce(one.model, "pyramid_drop") as reduction, torch.inference_mode():
        one.model(**seen.inputs(one.model), logits_to_keep=1)
        assert reduction.report.visual_tokens == [counts[model]]


def test_random_weights_follow_the_seed_and_leave_the_callers_alone() -> None:
    before = torch.random.get_rng_state()
    one, same = (load_random(model_spec(compose([*SHAPE, "seed=3"]))) for _ in range(2))
    other = load_random(model_spec(compose([*SHAPE, "seed=4"])))
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (m.model.layers[0].mlp.up_proj.weight for m in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.slow
def test_the_script_for_gpus_runs(tmp_path: Path) -> None:
    """Its commands, on a small shape and a CPU; both records are there."""
    script = Path(__file__).resolve().parents[2] / "scripts" / "benchmark_gpu.sh"
    words = [word for word in SHAPE if word.startswith("model.shape")]
    words += ["device=cpu", "model.dtype=float32", "task.rounds=1", "task.new_tokens=1"]
    words += ["task.visual=[32]", "task.batches=[1,2]", "task.plots=false", "task.baselines=[]"]
    words += ["task.break_even=null"]
    env = os.environ | {"TOKENREDUCE": f"{sys.executable} -m tokenreduce", "OUT": str(tmp_path)}
    env |= {"MODELS": "llama_16x512", "ATTENTIONS": "eager", "PYTHONPATH": str(script.parents[1])}
    run = subprocess.run([script, *words], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    whole, shares = (
        json.loads((tmp_path / f"llama_16x512_eager{end}" / "result.json").read_text())
        for end in ("", "_shares")
    )
    assert len(whole["rows"]) == 2
    assert len(shares["rows"]) == 2 * 4
    assert whole["subject"]["attention"] == "eager"


# -- who is measured -------------------------------------------------------------------------------


def entered(*words: str) -> tuple[DictConfig, Any]:
    config = compose(["task=benchmark", *words])
    from tokenreduce.cost import DecoderShape

    return config, DecoderShape(16, 512, 1376, 8, 8, 64, 256)


def test_the_chosen_strategy_comes_first_and_once() -> None:
    those = entered_by(*entered("strategy=stride"), 576)
    assert [one.name for one in those] == ["stride", "random"]
    assert {one.recipe and type(one.recipe.scheduler) for one in those} == {tr.Pyramid}


@pytest.mark.parametrize("rule", ["pyramid", "single", "linear", "cosine", "explicit"])
def test_every_rule_finds_its_shares(rule: str) -> None:
    words = ["strategy=random", f"scheduler={rule}", "task.keeps=[0.6]"]
    words += ["scheduler.layers=[4,8]"] if rule == "explicit" else []
    config, shape = entered(*words)
    ((share, scheduler),) = schedules_at(config.task.keeps, plain(config.scheduler), shape, 576)
    assert share == 0.6
    assert tr.schedulers.name_of(scheduler) == rule


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.weights=made"], "task.weights=made is unknown"),
        (["task.batches=[0]"], r"task.batches must be a list of whole numbers .* not \[0\]"),
        (["task.batches=4"], "task.batches must be a list"),
        (["task.visual=[]"], "task.visual must be a list"),
        (["task.break_even=[a]"], "task.break_even must be a list"),
        (["task.rounds=0"], "task.rounds must be a whole number of at least 1, not 0"),
        (["task.new_tokens=x"], "task.new_tokens must be a whole number of at least 0"),
        (["task.tolerance=-1"], "task.tolerance must be a share"),
        (["strategy=none"], "there is nothing to measure"),
        (["strategy=downsample"], "there is nothing to measure"),
        (["task.keeps=[1.5]"], "a share lies between 0 and 1, not 1.5"),
        (["scheduler=stochastic", "task.keeps=[0.5]"], "needs a rule whose share can be found"),
        (["task.keeps=[0.1]"], "infeasible: the minimum is"),
        (["task.baselines=[rnadom]"], "did you mean 'random'"),
        (["task.against=nowhere.json"], "is not the result.json of a task=benchmark"),
        (["model.shape.model_type=lama"], "cannot load 'llama_16x512'"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        benchmark(compose([*SHAPE, *QUICK, *words]), tmp_path)


def test_a_shape_has_no_weights_to_load() -> None:
    with pytest.raises(ValueError, match="is a shape without weights, for task=benchmark"):
        model_source(model_spec(compose(["model=llama_16x512"])))


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plots.wanted(None) is False
    with pytest.raises(ValueError, match="needs matplotlib"):
        plots.wanted(True)


# -- against an earlier run ------------------------------------------------------------------------


def slower(record: dict[str, Any], by: float) -> dict[str, Any]:
    """The same record, as if every reduced prefill had taken less time then."""
    made = json.loads(json.dumps(record))
    for row in made["rows"]:
        row["prefill"]["reduced"]["median_ms"] /= by
        row["prefill"]["ratio"]["median_of_pairs"] /= by
    return dict(made)


def test_a_run_against_itself_is_no_slower(record: dict[str, Any]) -> None:
    found = against.compare(record, record["rows"], tolerance=0.0)
    assert {row["ms"] for row in found} == {1.0}
    assert not any(row["slower"] for row in found)
    assert len(found) == 2 * len(record["rows"])  # prefill and decoding step


def test_what_is_slower_is_flagged(record: dict[str, Any]) -> None:
    found = against.compare(slower(record, 1.2), record["rows"], tolerance=0.05)
    flagged = [row for row in found if row["slower"]]
    assert {row["measure"] for row in flagged} == {"prefill"}
    assert len(flagged) == len(record["rows"])
    assert all(row["ms"] == pytest.approx(1.2) for row in flagged)
    assert not any(
        row["slower"] for row in against.compare(slower(record, 1.2), record["rows"], 0.25)
    )


@pytest.mark.slow
def test_runs_are_compared_from_the_command_line(record: dict[str, Any], tmp_path: Path) -> None:
    words = ["task.keeps=[0.5]", "task.visual=[40]", f"task.against={record['path']}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(tmp_path, *SHAPE, *QUICK, *words)
    assert len(found["against"]) == 2 * 3


def test_another_model_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    words = ["model.shape.num_hidden_layers=5", f"task.against={record['path']}"]
    with pytest.raises(ValueError, match=r"another model \(layers 4, now 5\)"):
        benchmark(compose([*SHAPE, *QUICK, *words]), tmp_path)


def test_other_measurements_are_refused(record: dict[str, Any]) -> None:
    rows = [row | {"visual_tokens": 41} for row in record["rows"]]
    with pytest.raises(ValueError, match="no measurement in common"):
        against.compare(record, rows, 0.05)


def test_other_conditions_are_told(record: dict[str, Any]) -> None:
    other = record | {"versions": record["versions"] | {"torch": "1.0"}}
    assert against.differences(record, record) == []
    assert against.differences(other, record) == [f"torch 1.0, now {record['versions']['torch']}"]


def test_other_conditions_warn(record: dict[str, Any]) -> None:
    config = compose(["task=benchmark", "task.against=x.json"])
    other = record | {"machine": record["machine"] | {"accelerator": "another"}}
    with pytest.warns(UserWarning, match="other conditions .accelerator another, now"):
        compared(config, other, record)


# -- peers and tables ------------------------------------------------------------------------------


def test_peers_stand_where_everything_agrees() -> None:
    assert len(recorded()) >= 8
    one = dict(recorded()[0])
    row = {name: one[name] for name in ("strategy", "visual_tokens", "text_tokens", "stops")}
    row |= {"tower": False, "batch": 1}
    sizes = {name: one[name] for name in ("layers", "hidden")}
    assert peer(sizes, row) == one
    for change in ({"batch": 2}, {"tower": True}, {"visual_tokens": 577}, {"strategy": "random"}):
        assert peer(sizes, row | change) is None
    assert peer(sizes | {"layers": 17}, row) is None


def test_tables_show_every_row(record: dict[str, Any]) -> None:
    rows = [row | {"original": None} for row in record["rows"]]
    made = tables.measured(rows)
    assert [table.row_count for table in made] == [1 + 6] * 4  # unreduced; three at two shares
    assert "orig." not in {column.header for column in made[0].columns}
    rows[0]["original"] = recorded()[0]
    assert "orig." in {column.header for column in tables.measured(rows)[0].columns}
    found = against.compare(slower(record, 2), record["rows"], 0.05)
    assert str(tables.compared(found, "x", 0.05).caption).startswith(f"{len(rows)} of")


def printed(*what: Any) -> str:
    console = Console(file=io.StringIO(), width=80)
    for one in what:
        console.print(one)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_tables_fit_80_columns(record: dict[str, Any]) -> None:
    rows = json.loads(json.dumps(record["rows"]))
    for row in rows:
        row |= {"original": recorded()[0], "strategy": "pyramid_drop", "tokens_per_second": 1234.5}
        row["prefill"]["unreduced"]["median_ms"] = 1099.5
    text = printed(
        *tables.measured(rows),
        tables.compared(against.compare(slower(record, 2), rows, 0.05), "x", 0),
    )
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "e+0" not in text
    assert "slower: ms, time" in text
    for head in ("pyramid_drop", "1100 ms", "KV cache", "tok/s", "1234"):
        assert head in text


def test_one_round_has_no_interval(record: dict[str, Any]) -> None:
    rows = [dict(row, original=None) for row in record["rows"]]
    for row in rows:
        row["prefill"] = {**row["prefill"], "interval": [0.9, 0.9], "coverage": 0.0}
    text = printed(*tables.measured(rows), tables.legend(1, "wall time"))
    assert "%)" not in text
    assert "(0.90-0.90)" not in text
    assert "1 round in turn" in text
    assert "task.rounds=7 has one of 95 %" in " ".join(text.split())
    assert coverage(1) == 0
    assert coverage(7) > 0.95
