"""`task=evaluate`: one run, a killed run, a sweep, two processes, questions on disk, bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from PIL import Image

import tokenreduce as tr
from tokenreduce.config import compose
from tokenreduce.data import sample
from tokenreduce.evaluation import runner as running
from tokenreduce.evaluation.pareto import front
from tokenreduce.evaluation.records import Store, unpack
from tokenreduce.tasks import evaluate as task

ROOT = Path(__file__).parents[2]
FEW = [
    "task=evaluate", "device=cpu", "task.limit=12", "data.questions=4", "task.batch=5",
    "task.baselines=[random]", "task.seeds=2", "task.changes=[jpeg]", "task.timed=1", "task.runs=1",
    "task.followed=3", "task.looks=0", "task.progress=false",
    "max_new_tokens=4",
]  # fmt: skip
POWER = "ignore:12 questions can hardly show:UserWarning"
pytestmark = pytest.mark.filterwarnings(POWER)


def run(folder: Path, *more: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return task.evaluate(compose([*FEW, *more]), folder)


def answers(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every answer of every condition, without what a clock says."""
    found = {}
    for path in sorted(folder.glob("*/answers/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.stem] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return found


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "prefill"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, "strategy=fastv", "task.looks=2")


def test_one_run(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    rows = result["table"]
    assert [row["role"] for row in rows] == ["full", "harmless", "baseline", "tested"]
    full, _, null, tested = rows
    assert full["accuracy"] > 0.8
    assert null["seeds"] == [0, 1]
    for row in (null, tested):
        assert row["stops"] == {"2": 72.0}
        assert 0.5 < row["flops_share"] < 0.7
        assert row["prefill"]["prefill_ratio"] > 0
    assert null["positions"] == tested["positions"]
    found = tested["following"]
    assert found["questions"] + found["left_out"] == 3
    assert set(tested["against"]) == {"random"}
    stored = json.loads((folder / "table.json").read_text())
    assert stored["rows"] == json.loads(json.dumps(rows))
    assert "tiny" in stored["models"]
    assert len((folder / "table.csv").read_text().splitlines()) == 5
    for name in ("accuracy.png", "accuracy_kinds.png"):  # all at one budget
        with Image.open(folder / name) as picture:
            assert picture.width > 400


def test_the_report_begins_with_answers_that_were_lost(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    found = {key: {row["item"]: row for row in rows} for key, rows in answers(folder).items()}
    full = next(rows for key, rows in found.items() if key.startswith("full-"))
    lost = [n for n in full if full[n]["correct"] and not found[result["tested"]][n]["correct"]]
    page = (folder / "report.html").read_text()
    assert str(folder / "report.html") in result["files"]
    assert lost, "fastv at layer 2 loses answers of these"
    for name in lost[:2]:
        assert f"{full[name]['group']}, {name}" in page


def test_what_is_kept_of_every_question(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    (row, *_) = answers(folder)[result["tested"]]
    assert sum(row["probabilities"].values()) <= 1.0 + 1e-6
    assert len(row["probabilities"]) >= 2
    assert len(unpack(row["kept"]["2"])) == row["stops"]["2"] == 72
    assert row["flops"] < row["flops_full"]
    assert {"item", "image", "group", "question", "expected", "answer", "correct"} <= set(row)


@pytest.mark.slow
def test_keeping_everything_changes_nothing(tmp_path: Path) -> None:
    rows = run(
        tmp_path, "strategy=fastv", "scheduler.keep=1.0", "task.baselines=[]", "task.timed=0"
    )
    tested = rows["table"][-1]
    assert tested["role"] == "tested"
    assert tested["difference"] == 0
    assert tested["jsd"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert tested["paired"]["p"] == 1.0
    assert tested["prefill"] is None


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = running.ask

    def dies(loaded: Any, condition: Any, items: Any, how: Any) -> Any:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(condition.key)
        return real(loaded, condition, items, how)

    monkeypatch.setattr(running, "ask", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "strategy=fastv")
    part = next(tmp_path.glob("tiny/answers/*.part"))
    part.write_bytes(part.read_bytes()[:-7])  # within a line
    asked.clear()
    monkeypatch.setattr(running, "ask", lambda *x: (asked.append(x[1].key), real(*x))[1])
    again = run(tmp_path, "strategy=fastv")
    assert answers(tmp_path) == answers(whole[0])
    assert timeless(again["table"]) == timeless(whole[1]["table"])
    assert again["tested"] not in asked  # was whole before
    asked.clear()
    run(tmp_path, "strategy=fastv")
    assert asked == []


@pytest.mark.slow
def test_runs_in_one_folder_make_one_table(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(whole[0], shared)
    found = run(tmp_path / "out", "strategy=stride", "scheduler=single", f"task.folder={shared}")
    rows = found["table"]
    assert [row["role"] for row in rows] == ["full", "harmless", "baseline", "baseline", "tested"]
    names = [row["strategy"]["name"] for row in rows[2:]]
    assert names == ["random", "stride", "fastv"]
    assert set(rows[-1]["against"]) == {"random", "stride"}


def test_other_questions_in_the_same_folder(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(whole[0], shared)
    before = {p: p.read_bytes() for p in shared.rglob("*") if p.is_file() and p.suffix != ".lock"}
    with pytest.raises(ValueError, match="holds answers with questions"):
        run(tmp_path / "out", "task.draw=1", f"task.folder={shared}")
    with pytest.raises(ValueError, match="holds answers with max_new_tokens 4, and this run has 5"):
        run(tmp_path / "out", "max_new_tokens=5", f"task.folder={shared}")
    assert all(p.read_bytes() == data for p, data in before.items())


@pytest.mark.slow
def test_questions_from_a_file(tmp_path: Path) -> None:
    rows = []
    for i in range(2):
        one = sample(0, "heldout", 2_000_000 + i, questions=3)
        Image.fromarray(one.image).save(tmp_path / f"{i}.png")
        rows += [
            {"image": f"{i}.png", "question": q.text, "answer": q.answer, "group": q.type}
            for q in one.questions
        ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    less = [word for word in FEW if not word.startswith("data.")]
    config = compose([*less, "data=questions", f"data.path={path}", "task.changes=[paraphrase]"])
    with pytest.warns(
        UserWarning, match="6 questions can hardly show that less than 2 points are lost"
    ):
        found = task.evaluate(config, tmp_path)
    assert [row["role"] for row in found["table"]] == ["full", "baseline", "tested"]
    assert found["table"][0]["questions"] == 6
    assert any("no paraphrase of its questions" in note for note in found["notes"])
    assert any("downsample" in note for note in found["notes"]) is False
    cut = tmp_path / "1.png"
    cut.write_bytes(cut.read_bytes()[:-200])  # its beginning is that of a picture
    with (
        pytest.warns(UserWarning, match="6 questions"),
        pytest.raises(ValueError, match=r"question '\d': image .*1\.png' is damaged") as told,
    ):
        task.evaluate(config, tmp_path / "again")
    assert "\n" not in str(told.value)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match=r"questions\.jsonl:1: missing image file"):
        task.evaluate(config, tmp_path)


@pytest.mark.slow
def test_smaller_pictures_where_they_save_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, "task.baselines=[downsample]", "task.changes=[]")
    assert [note for note in found["notes"] if "pool their tokens instead" in note]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["task.baselines=[fastv]"], "task.baselines: 'fastv' reads the model"),
        (["task.changes=[blur]"], "no perturbation 'blur'"),
        (["task.seeds=0"], "task.seeds=0"),
        (["task.limit=0"], "task.limit=0"),
        (["task.folder=${oc.env:TR_A_FILE}"], "is a file: give a folder"),
        (["min_tokens=5", "strategy=downsample", "scheduler=input"], "min_tokens=5 is decided"),
        (["strategy=downsample", "scheduler=input"], "pool their tokens instead"),
        (["data.questions=0"], "data.questions=0"),
        (["task.limit=null"], "do not end"),
        (["task.margin=0"], "margin=0"),
        (["task.match=fuzzy"], "no rule for right answers 'fuzzy'"),
        (["data=questions"], "needs a path"),
        (["data=llava"], "needs a path"),
        (["strategy=fastv", "scheduler.layer=20"], "layer 20"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_written(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TR_A_FILE", __file__)
    config = compose([w for w in FEW if "data=" not in "".join(given) or "data." not in w] + given)
    with pytest.raises((ValueError, KeyError), match=re.escape(message)):
        task.evaluate(config, tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_front_of_cost_and_accuracy() -> None:
    points = [(0.5, 0.8), (0.4, 0.7), (0.6, 0.75), (0.5, 0.9), (0.9, 0.95)]
    assert front(points) == [(0.4, 0.7), (0.5, 0.9), (0.9, 0.95)]


def test_nothing_to_reduce_is_said(tmp_path: Path) -> None:
    less = [
        "task.limit=2",
        "task.baselines=[]",
        "task.changes=[]",
        "task.timed=0",
        "task.followed=0",
    ]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = run(tmp_path, "strategy=fastv", "min_tokens=1000", *less)
    (note,) = [note for note in found["notes"] if "nothing was reduced" in note]
    assert re.search(r"fastv, single: nothing was reduced, min_tokens=1000 is above", note)
    assert note in [str(one.message) for one in told]


def test_a_model_that_has_not_answered_stops_no_other(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(whole[0], shared)
    Store(shared / "other").begin({"model": "other"}, {})
    found = run(tmp_path / "out", "strategy=fastv", f"task.folder={shared}")
    assert found["table"]
    assert "other: not in the table, its full model has not answered" in found["notes"]
    assert "other" in json.loads((shared / "table.json").read_text())["models"]


def test_runs_collect_and_write_one_after_the_other(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a table of fewer rows may be written over one of more."""
    shared, free = tmp_path / "shared", []
    shutil.copytree(whole[0], shared)

    def watched(name: str) -> Any:
        real = getattr(task, name)

        def called(*given: Any) -> Any:
            try:
                FileLock(shared / ".table.lock").acquire(timeout=0)
                free.append(name)
            except Timeout:
                pass
            return real(*given)

        return called

    for name in ("collect", "write", "draw"):
        monkeypatch.setattr(task, name, watched(name))
    run(tmp_path / "out", "strategy=fastv", f"task.folder={shared}")
    assert free == []


@pytest.mark.slow
def test_a_draw_of_random_is_said_to_be_one(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(whole[0], shared)
    schedule = ["scheduler=single", "scheduler.layer=2", f"task.folder={shared}"]
    found = run(tmp_path / "out", "strategy=random", "seed=7", *schedule)
    assert "random, seed 7: one of the 3 draws of the baseline random (seeds 0, 1, 7)" in str(
        found["notes"]
    )
    (row,) = [row for row in found["table"] if row["role"] == "baseline"]
    assert sorted(row["seeds"]) == [0, 1, 7]


def started(folder: Path, *words: str, launcher: tuple[str, ...] = ()) -> str:
    """What the command line says, in a folder."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [*(launcher or (sys.executable, "-m", "tokenreduce")), *FEW, *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SWEEP = ["strategy=fastv,stride", "scheduler=single", "task.timed=0", "hydra.sweep.dir=out", "-m"]


def check_sweep(folder: Path) -> None:
    rows = json.loads((folder / "out" / "table.json").read_text())["rows"]
    assert [row["role"] for row in rows] == ["full", "harmless", "baseline", "baseline", "tested"]
    assert {row["strategy"]["name"] for row in rows[2:]} == {"random", "stride", "fastv"}
    assert len(list((folder / "out" / "tiny" / "answers").glob("full-*.jsonl"))) == 1
    for job in "01":
        assert (folder / "out" / job / "result.json").is_file()


@pytest.mark.slow
def test_a_sweep_makes_one_table(tmp_path: Path) -> None:
    said = started(tmp_path, *SWEEP)
    check_sweep(tmp_path)
    assert said.count("difference (95 %)") == 1  # at the end, not by every job
    assert said.count("table.csv") == said.count("accuracy.png") == 1


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins") is None
    or importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed (the extra 'sweep')",
)
def test_a_sweep_of_parallel_jobs_makes_the_same_table(tmp_path: Path) -> None:
    started(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SWEEP)
    check_sweep(tmp_path)


@pytest.mark.slow
def test_two_processes_make_the_same_table(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    # --cpu would start one process: accelerate leaves several to MPI there
    words = "accelerate.commands.launch --multi_gpu --num_processes 2 -m tokenreduce"
    said = started(
        tmp_path, "strategy=fastv", "hydra.run.dir=out",
        launcher=(sys.executable, "-m", *words.split()),
    )  # fmt: skip
    assert said.count("verdict") >= 1
    assert answers(tmp_path / "out") == answers(whole[0])
    stored = json.loads((tmp_path / "out" / "table.json").read_text())
    assert timeless(stored["rows"]) == json.loads(json.dumps(timeless(whole[1]["table"])))


def test_stores_are_readable_from_python(whole: tuple[Path, dict[str, Any]]) -> None:
    """What the page of the documentation tells readers to do."""
    store = Store(whole[0] / "tiny")
    key = whole[1]["tested"]
    assert store.conditions()[key]["condition"]["strategy"] == {"name": "fastv"}
    assert len(store.answers(key)) == store.head["identity"]["number"] == 12
    assert tr.strategies["fastv"] is not None


@pytest.mark.slow
def test_null_reducers_that_cost_something_else_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tokens merged in the vision tower: the baselines' schedule is not its own."""
    found = run(tmp_path, "strategy=tome", "strategy.tower=merged", "strategy.r=8")
    row = found["table"][-1]
    assert row["role"] == "tested"
    assert set(row["against"]["random"]) == {"flops_share"}
    said = " ".join(capsys.readouterr().out.split())
    assert "not compared with baselines of another cost: " in said
    assert "random (" in said
