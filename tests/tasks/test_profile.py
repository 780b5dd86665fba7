"""`task=profile`: a run, the same once more, its preset as an option, other data, refusals."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import tokenreduce as tr
from tests.quiet import quiet_transformers
from tokenreduce.config import compose
from tokenreduce.presets import stops_of
from tokenreduce.profiling import Measurement, ScheduleEvaluator, load_schedule
from tokenreduce.profiling.summary import additivity
from tokenreduce.profiling.table import way
from tokenreduce.tasks import profile as task
from tokenreduce.testing.checkpoints import write

SMALL = [
    "task=profile", "device=cpu", "positions=keep", "data.questions=4", "task.samples=8",
    "task.layers=[1,3,4]", "task.keeps=[0.5,0.0]", "task.candidates=2", "task.trials=2",
    "task.grid=8", "task.progress=false",
]  # fmt: skip


def run(folder: Path, *more: str) -> dict[str, Any]:
    return task.profile(compose([*SMALL, *more]), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("profile")
    return folder, run(folder)


def test_a_run_measures_searches_and_draws(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, numbers = whole
    assert (numbers["prompts"], numbers["pictures"], numbers["depth"]) == (8, 2, 8)
    assert numbers["layers"] == [1, 3, 4]
    assert numbers["keeps"] == [0.5, 0.0]
    losses = {(c["stops"][0][0], c["stops"][0][1]): c["jsd"] for c in numbers["sensitivity"]}
    assert len(losses) == 6
    assert losses[1, 0.0] > 0.05 > 0.01 > losses[4, 0.0]  # this model has read by layer 4
    assert numbers["full"]["jsd"] < 1e-7
    assert numbers["full"]["right"] == 1
    assert numbers["given"]["stops"] == ((2, 0.5), (4, 0.25), (6, 0.125))
    assert numbers["given"]["predicted"] is None  # layer 2 was not profiled
    assert numbers["budget"] == pytest.approx(numbers["given"]["flops_share"], abs=1e-6)
    for row in numbers["schedules"]:
        assert row["flops_share"] <= numbers["budget"] + 1e-6
        assert len(row["stops"]) <= 3
        assert row["jsd"] >= numbers["found"]["jsd"]
        low, high = row["jsd_interval"]
        assert 0.999 * low <= row["jsd"] <= 1.001 * high
    assert 4 <= len(numbers["schedules"]) <= 5
    with Image.open(numbers["picture"]) as picture:
        assert picture.width > 400
    json.dumps(numbers)
    rows = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + 1 + 6 + len(numbers["schedules"])  # head, whole model, stops


@pytest.mark.slow
def test_it_is_not_measured_again(
    whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = whole
    measured: list[Any] = []
    before = ScheduleEvaluator.measure

    def counted(self: ScheduleEvaluator, stops: Any) -> Measurement:
        measured.append(stops)
        return before(self, stops)

    monkeypatch.setattr(ScheduleEvaluator, "measure", counted)
    assert run(folder) == first
    assert measured == []
    lines = (folder / "cells.jsonl").read_text().splitlines(keepends=True)
    (folder / "cells.jsonl").write_text("".join(lines[:-2]) + lines[-2][:20])
    again = run(folder)
    assert [list(map(list, stops)) for stops in measured] == [
        json.loads(line)["stops"] for line in lines[-2:]
    ]
    assert again["found"]["stops"] == first["found"]["stops"]
    assert again["sensitivity"] == first["sensitivity"]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["strategy=random", "scheduler=pyramid"], "strategy"),
        (["task.tokens=3"], "tokens"),
        (["seed=1"], "seed, prompts"),
        (["positions=compact"], "positions"),
    ],
)
def test_another_profile_in_the_folder_is_refused(
    more: list[str], what: str, whole: tuple[Path, dict[str, Any]]
) -> None:
    folder, _ = whole
    with pytest.raises(ValueError, match=f"holds the profile of another {what}: use another"):
        run(folder, *more)


def test_the_schedule_is_an_option(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, numbers = whole
    scheduler = load_schedule(numbers["preset"])
    assert stops_of(scheduler, 8) == numbers["found"]["stops"]
    line = subprocess.run(
        [
            *(sys.executable, "-m", "tokenreduce", "--config-dir", str(folder)),
            *("strategy=fastv", "scheduler=profiled", "--cfg", "job"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = yaml.safe_load(line.stdout)["scheduler"]
    assert tr.schedulers.build(shown.pop("name"), **shown) == scheduler
    comment = Path(numbers["preset"]).read_text().splitlines()[0]
    assert f"{numbers['found']['flops_share']:.4f} of the FLOPs" in comment
    assert "pyramid_drop" in comment


def test_other_budgets_and_measures_use_the_same_cells(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = whole
    found = run(
        folder, "task.measure=right", "task.budget=0.6", "task.stops=1", "task.preset=wider"
    )
    assert found["found"]["flops_share"] <= 0.6
    assert {len(row["stops"]) for row in found["schedules"]} <= {1, 3}  # one, or those given
    rights = [row["right"] for row in found["schedules"]]
    assert rights == sorted(rights, reverse=True)
    assert (folder / "scheduler" / "wider.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.measure=jds"], "no task.measure 'jds'; did you mean 'jsd'"),
        (["task.samples=0"], "task.samples=0 must be at least 1"),
        (["strategy=none"], "no stop to profile"),
        (["task.layers=[9]"], "layer 9"),
        (["task.budget=0.1"], "infeasible: the minimum is"),
        (["task.preset=a.b"], "no name for an option"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path) -> None:
    tiny = ["task.samples=2", "task.layers=[4]", "task.keeps=[0.0]", "task.trials=0"]
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *tiny, *words)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.layers=99", r"task\.layers must be a list of whole numbers .*, not 99"),
        ("task.layers=[x]", r"not \['x'\]"),
        ("task.layers=[1.5]", r"not \[1\.5\]"),
        ("task.layers=[-1]", r"not \[-1\]"),
        ("task.layers=[]", r"not \[\]"),
        ("task.keeps=0.5", r"task\.keeps must be a list of shares .*, not 0\.5"),
        ("task.keeps=[2]", r"not \[2\]"),
        ("task.keeps=[nan]", r"not \[nan\]"),
        ("task.budget=x", r"task\.budget=x: the share"),
        ("task.budget=45", r"task\.budget=45: the share"),
        ("task.stops=0", r"task\.stops=0: the most stops"),
        ("task.stops=x", r"task\.stops=x: the most stops"),
    ],
)
def test_options_are_refused_before_a_model_is_loaded(
    word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "load", None)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, word)


def test_rows_need_a_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data=llava needs a path"):
        task.profile(compose(["task=profile", "device=cpu", "data=llava"]), tmp_path)


def test_another_family_on_rows_of_its_own(tmp_path: Path) -> None:
    """Pictures of many sizes, answers that an untrained model does not give, M-RoPE."""
    write("qwen3_vl", tmp_path / "model")
    rows = []
    for i, size in enumerate([(56, 84), (84, 84), (112, 56), (56, 56)]):
        Image.effect_noise(size, 60 + i).save(tmp_path / f"{i}.png")
        question = {"from": "human", "value": f"<image>\nWhat is this {i} ?"}
        rows.append(
            {"image": f"{i}.png", "conversations": [question, {"from": "gpt", "value": "word50"}]}
        )
    rows.append(
        {"conversations": [{"from": "human", "value": "What ?"}, {"from": "gpt", "value": "that"}]}
    )
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with quiet_transformers():
        numbers = task.profile(
            compose(
                [
                    *(word for word in SMALL if not word.startswith("data.")),
                    "data=llava", f"data.path={tmp_path / 'rows.jsonl'}",
                    f"model.id={tmp_path / 'model'}", "task.layers=[0,2]", "task.batch=2",
                    "strategy=fastv", "scheduler=pyramid", "model.dtype=float32",
                ]
            ),
            tmp_path / "out",
        )  # fmt: skip
    assert numbers["prompts"] == 4
    assert numbers["full"]["same"] == 1
    assert numbers["full"]["jsd"] < 1e-7
    assert numbers["full"]["nll"] > 0
    assert numbers["tokens"]["visual"] > 4
    assert all(math.isfinite(c["jsd"]) for c in numbers["sensitivity"])
    assert max(c["jsd"] for c in numbers["sensitivity"]) > 0


@pytest.mark.slow
def test_questions_from_a_file(tmp_path: Path) -> None:
    """Questions about one file are about one picture, wherever they stand."""
    asked = ["what is in the red circle?", "how many objects are there?", "where is the 7?"]
    rows = []
    for i in range(6):
        Image.effect_noise((96, 96), 50 + i).save(tmp_path / f"{i % 2}.png")
        rows.append({"image": f"{i % 2}.png", "question": asked[i // 2], "answer": "2"})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        *(word for word in SMALL if not word.startswith("data.")),
        *("data=questions", f"data.path={tmp_path / 'questions.jsonl'}", "task.layers=[3]"),
        *("task.keeps=[0.0]", "task.trials=0", "task.samples=5"),
    ]
    numbers = task.profile(compose(words), tmp_path / "out")
    assert (numbers["prompts"], numbers["pictures"]) == (5, 2)
    with pytest.raises(ValueError, match="data=questions needs a path"):
        task.profile(compose(["task=profile", "device=cpu", "data=questions"]), tmp_path / "no")


def test_how_well_losses_add_up() -> None:
    rows = [{"predicted": p, "loss": m} for p, m in [(0.1, 0.2), (0.2, 0.2), (0.3, 0.5)]]
    found = additivity([*rows, {"predicted": None, "loss": 9.0}])
    assert found is not None
    assert found["schedules"] == 3
    assert found["error"] == pytest.approx(0.1)
    assert found["absolute"] == pytest.approx(0.1)
    assert found["rank"] == pytest.approx(0.866, abs=1e-3)
    assert additivity(rows[:2]) is None
    flat = additivity([{"predicted": 0.1, "loss": m} for m in (0.1, 0.2, 0.3)])
    assert flat is not None
    assert flat["rank"] is None


def test_a_schedule_in_words() -> None:
    assert way([(2, 0.5), (4, 0.0)]) == "50.0% from 2, none from 4"
    assert way([]) == "all"
