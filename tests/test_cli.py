"""The `tokenreduce` command: quick help, one line for what is refused, a result for every run."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch.distributed import TCPStore

import tokenreduce as tr
from tokenreduce import cli, plugins
from tokenreduce.config import compose
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.errors import Refused
from tokenreduce.tasks import tasks

from .test_files import full_disk
from .untrained import untrained

Program = Callable[..., Any]


@dataclass
class Outcome:
    """What a call left behind."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        assert self.code == 2
        (line,) = self.err.splitlines()
        assert line.startswith("tokenreduce: ")
        return line


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """Runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.FULL_ERROR, raising=False)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tokenreduce", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def probe() -> Iterator[list[Any]]:
    """A task that only notes its config: `task.name=probe`."""
    seen: list[Any] = []

    @tasks.register("probe")
    def note(config: Any, output: Path) -> dict[str, Any]:
        seen.append(config)
        return {"folder": str(output)}

    yield seen
    del tasks._entries["probe"]  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model of the embedded one's shape, with its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    loaded = untrained()
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (96, 96), "red").save(tmp_path / "red (1), a=b.png")
    return str(tmp_path / "red (1), a=b.png")


# -- help, and what must not need torch ------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that reports at its end whether torch or transformers were loaded."""
    code = (
        "import atexit, sys, tokenreduce.cli\n"
        "heavy = lambda: {'torch', 'transformers'} & set(sys.modules)\n"
        "atexit.register(lambda: print('heavy:', *heavy()))\n"
        "tokenreduce.cli.main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_is_quick_and_names_everything() -> None:
    before = os.times()
    start = time.perf_counter()
    run = python("--help")
    elapsed, after = time.perf_counter() - start, os.times()
    # on a busy machine the wall clock counts others' work: processor time then decides
    spent = sum(after[2:4]) - sum(before[2:4])
    assert min(elapsed, spent) < 3
    assert run.stdout.endswith("heavy:\n")
    for group in ("task", "model", "strategy", "scheduler", "data", "experiment"):
        assert f"{group}: " in run.stdout
    for text in (
        "pyramid_drop",
        "llava_1_5_7b",
        "tokenreduce strategy=fastv",
        "--config-dir",
        "max_new_tokens",
        "$(tokenreduce -sc install=bash)",
    ):
        assert text in run.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cfg", "job", "strategy=fastv"),
        ("--info", "defaults"),
        ("-sc", "query=bash"),
        ("strategy=fastvv",),
        ("scheduler.ratoi=1",),
    ],
)
def test_no_framework_is_loaded_before_a_task_runs(arguments: tuple[str, ...]) -> None:
    run = python(*arguments)
    assert run.stdout.endswith("heavy:\n")


def test_completion_knows_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "tokenreduce strategy=")
    monkeypatch.setenv("COMP_POINT", "21")
    run = python("-sc", "query=bash")
    assert "strategy=fastv" in run.stdout.split()


def test_it_is_a_module_too() -> None:
    command = [sys.executable, "-m", "tokenreduce", "--cfg", "job", "--package", "strategy"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "name: pyramid_drop" in run.stdout


# -- one line for what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=org/name"], "no model 'org/name' among the options: a checkpoint"),
        (["+task.rns=3"], "no option 'task.rns'; did you mean 'task.runs'"),
        (["strategy=fastvv"], "no strategy 'fastvv'; did you mean 'fastv'? (known: "),
        (["scheduler=pyramyd"], "did you mean 'pyramid'?"),
        (["stratgy=fastv"], "no option 'stratgy'; did you mean 'strategy'?"),
        (["scheduler.ratoi=1"], "no option 'scheduler.ratoi'; did you mean 'scheduler.ratio'?"),
        (["seed"], "seed"),
        (["seed=[1"], "[1"),
        (["+strategy._target_=os.system"], "strategy._target_ is refused"),
        (["task.name=generat"], "no task 'generat'"),
        (["--config-name", "other"], "Cannot find primary config 'other'"),
        (["--cfg", "job", "-m"], "Only one of"),
        (["prompt=hello", "model=llava_1_5_7b"], "a prompt needs a picture: add image="),
        (["image=cat.png"], "a picture needs a question: add prompt="),
        (["image=cat.png", "prompt=hello"], "image 'cat.png' does not exist"),
        (["image=.", "prompt=hello"], "is a folder"),
        (["image=https://example.org/cat.png", "prompt=hello"], "is an address"),
        (["image=text.png", "prompt=hello"], "not a picture of a known format"),
        (["image=cut.png", "prompt=hello"], "damaged or cut short"),
        (["image=ok.png", "prompt=hello", "scheduler=single", "scheduler.keep=1.5"], "not 1.5"),
        (["image=ok.png", "prompt=hello", "strategy=fastv", "strategy.score=lst"], "'last'"),
        (["image=ok.png", "prompt=hello", "model.id=./nowhere"], "holds no config.json"),
        (["image=ok.png", "prompt=hello", "model.id=other"], "'bert' (supported: "),
        (["image=ok.png", "prompt=hello", "device=abacus"], "device=abacus cannot be used"),
        (["image=ok.png", "prompt=hello", "attention=spda"], "did you mean 'sdpa'?"),
        (["image=ok.png", "prompt=hello", "model.dtype=fp16"], "no model.dtype 'fp16'"),
        (["image=ok.png", "prompt=hello", "model.trust_remote_code=true"], "model.revision="),
    ],
)
def test_a_refusal_is_one_line(
    program: Program, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.effect_noise((50, 50), 20).save(tmp_path / "ok.png")
    data = (tmp_path / "ok.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    assert message in program(*arguments).line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scheduler=single", "scheduler.layer=99"], "layer 99 is outside a decoder of 8 layers"),
        (["positions=kep"], "did you mean 'keep'?"),
        (["logits=all"], "no logits 'all'"),
        (["strategy.name=needy"], "Needy needs tea"),
        (["prompt=Is <image> like <image>"], "2 times '<image>' for 1 picture:"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(
    program: Program, checkpoint: str, picture: str, arguments: list[str], message: str
) -> None:
    @tr.strategies.register("needy")
    @dataclass
    class Needy(tr.Scorer):
        needs: ClassVar[frozenset[str]] = frozenset({"tea"})

        def score(self, tokens: tr.Tokens) -> torch.Tensor:
            return tokens["tea"]

    try:
        words = ["prompt=hello", f"image={picture}", f"model.id={checkpoint}", *arguments]
        assert message in program(*words).line
    finally:
        del tr.strategies._entries["needy"]


@pytest.mark.parametrize("way", ["debug=true", "environment"])
def test_a_traceback_can_be_asked_for(
    program: Program, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "environment":
        monkeypatch.setenv(cli.FULL_ERROR, "1")
    words = ["image=cat.png", "prompt=hello", *(["debug=true"] if "=" in way else [])]
    with pytest.raises(ValueError, match=r"cat\.png"):
        program(*words)


@pytest.mark.parametrize(
    "fault", ["None + 1", "{}['a']", "int('x')", "[][0]", "torch.ones(2) @ torch.ones(3)"]
)
def test_a_fault_in_the_program_is_not_a_refusal(program: Program, fault: str) -> None:
    """A slip in our own code, or an error out of torch, keeps its traceback."""

    @tasks.register("faulty")
    def faulty(config: Any, output: Path) -> dict[str, Any]:
        exec(
            compile(fault, "tokenreduce/slip.py", "exec"),
            {"__name__": "tokenreduce.slip", "torch": torch},
        )
        return {}

    try:
        with pytest.raises((TypeError, KeyError, ValueError, IndexError, RuntimeError)):
            program("task.name=faulty")
    finally:
        del tasks._entries["faulty"]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_plugin_that_fails_is_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "plug-1.0.dist-info").mkdir(parents=True)
    (site / "plug.py").write_text("import nothing_of_that_name")
    info = site / "plug-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nplug = plug\n")
    (site / "quick.py").write_text(
        "import tokenreduce.cli, tokenreduce.tasks\n"
        "tokenreduce.tasks.tasks.register('quick')(lambda config, output: {'fine': True})\n"
        "tokenreduce.cli.main()\n"
    )
    run = subprocess.run(
        [sys.executable, str(site / "quick.py"), "task.name=quick"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    (line,) = run.stderr.splitlines()
    assert line.startswith("tokenreduce: warning: plug-in 'plug' (plug 1.0) is left out")
    assert len(list(tmp_path.glob("outputs/*/*/result.json"))) == 1


# -- what a run leaves behind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Is it red, or blue?",
        "What's this?",
        r"a\b (1) {x}",
        "100% [sic] = ok",
        "it's \\'so",
        "end\\",
        "a\\\\'b''c",
        "-m",
        "naïve: #1 & <2>",
        "a  b",
    ],
)
def test_a_prompt_is_just_text(text: str) -> None:
    assert compose(cli.quote_text([f"prompt={text}", f"image={text}"])).prompt == text


@pytest.mark.parametrize("words", [["prompt=null"], ["prompt='a, b'"], ["image=[a.png,b.png]"],
                                   ["seed=1", "-m", "prompt=a,b"], ["--help"]])  # fmt: skip
def test_what_is_quoted_or_swept_stays(words: list[str]) -> None:
    assert cli.quote_text(words) == words


def test_an_old_name_of_a_schedule_works_and_warns(program: Program, probe: list[Any]) -> None:
    with pytest.warns(FutureWarning, match="scheduler=fit is now scheduler=fitprune") as said:
        done = program("task.name=probe", "scheduler=fit", "hydra.run.dir=here")
    assert done.code == 0
    assert len(said) == 1


def test_every_run_writes_its_result(program: Program, probe: list[Any], tmp_path: Path) -> None:
    done = program("task.name=probe", "strategy=vtw", "hydra.run.dir=here", "prompt=a, b")
    assert done.code == 0
    assert "here/result.json" in done.out
    record = json.loads((tmp_path / "here" / "result.json").read_text())
    assert Path.cwd() == tmp_path
    assert record["choices"]["strategy"] == "vtw"
    assert record["choices"]["scheduler"] == "vtw"
    assert record["config"]["scheduler"]["name"] == "single"
    assert record["config"]["prompt"] == "a, b"
    assert "strategy=vtw" in record["overrides"]
    assert {"torch", "transformers", "tokenreduce"} <= set(record["versions"])
    assert {"commit", "machine", "seconds"} <= set(record)
    assert record["folder"].endswith("here")


def test_runs_have_folders_of_their_own(program: Program, probe: list[Any], tmp_path: Path) -> None:
    program("task.name=probe")
    (folder,) = (tmp_path / "outputs" / "probe").iterdir()
    assert (folder / "result.json").is_file()
    assert (folder / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.slow
def test_a_sweep_runs_every_choice(program: Program, probe: list[Any], tmp_path: Path) -> None:
    program("-m", "task.name=probe", "strategy=random,vtw", "seed=0,1")
    ran = [(config.strategy.name, config.scheduler.name, config.seed) for config in probe]
    random = [("random", "pyramid", 0), ("random", "pyramid", 1)]
    assert ran == [*random, ("vtw", "single", 0), ("vtw", "single", 1)]
    assert len(list(tmp_path.glob("outputs/probe/*_sweep/*/result.json"))) == 4


def test_options_of_ones_own(program: Program, probe: list[Any], tmp_path: Path) -> None:
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    text = "defaults:\n  - override /scheduler@_global_.scheduler: linear\nname: pyramid_drop\n"
    (tmp_path / "mine" / "strategy" / "gentle.yaml").write_text(text)
    program("--config-dir", "mine", "strategy=gentle", "task.name=probe")
    assert probe[0].scheduler.name == "linear"


def test_only_the_first_of_several_processes_writes(
    program: Program, probe: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert program("task.name=probe", "hydra.run.dir=here").out == ""
    assert not (tmp_path / "here" / "result.json").exists()


def test_processes_of_one_launch_share_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far apart they start; another launch has another."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    found = []
    for launch in range(2):
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        monkeypatch.setenv("MASTER_PORT", str(store.port))
        for seconds in (0, 1, 5):
            moment = time.gmtime(100 * launch + seconds)
            monkeypatch.setattr(time, "strftime", lambda form, moment=moment: time.asctime(moment))
            found.append(cli.share_folder(["seed=1"]))
    assert found[0] == found[1] == found[2] != found[3] == found[4] == found[5]
    first, folder = found[0]
    assert first == "seed=1"
    assert folder.startswith("hydra.run.dir=outputs/${task.name}/Thu Jan  1 00:00:00")


@pytest.mark.slow
def test_torchrun_shares_a_folder(tmp_path: Path) -> None:
    code = (
        "import os, time, tokenreduce.cli as cli, tokenreduce.tasks as t\n"
        "time.sleep(1.1 * int(os.environ['RANK']))\n"
        "t.tasks._entries['quick'] = lambda c, o: (o / os.environ['RANK']).touch() or {}\n"
        "import sys; sys.argv[1:] = ['task.name=quick']; cli.main()\n"
    )
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "program.py"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    (folder,) = (tmp_path / "outputs" / "quick").iterdir()
    assert {"0", "1"} <= {path.name for path in folder.iterdir()}


def test_a_named_folder_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.share_folder(["seed=1"]) == ["seed=1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert cli.share_folder(["hydra.run.dir=here"]) == ["hydra.run.dir=here"]
    with pytest.raises(Refused, match=r"several processes need one folder.*give hydra.run.dir="):
        cli.share_folder(["seed=1"])


def test_nothing_is_left_in_the_environment(program: Program, probe: list[Any]) -> None:
    before = dict(os.environ)
    program("task.name=probe")
    program("strategy=nothing")
    assert dict(os.environ) == before


@pytest.mark.parametrize("strategy", ["pyramid_drop", "pooling", "none"])
def test_the_main_task(
    program: Program, checkpoint: str, picture: str, tmp_path: Path, strategy: str
) -> None:
    done = program(
        f"model.id={checkpoint}",
        f"image={picture}",
        "prompt=What is in the red circle?",
        f"strategy={strategy}",
        "max_new_tokens=3",
        "task.runs=2",
        "hydra.run.dir=run",
    )
    assert done.code == 0
    assert done.err == ""
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    kept = {"pyramid_drop": [72, 36, 18], "pooling": [36], "none": []}[strategy]
    assert [stop["kept"] for stop in record["report"]["stops"]] == [[n] for n in kept]
    assert [len(indices) for indices in record["kept"].values()] == kept
    for text in (record["answers"]["full"], "What is in the red circle?", "144", *map(str, kept)):
        assert text in done.out
    assert (record["report"]["flops"] < record["report"]["flops_full"]) == (strategy != "none")
    assert len(record["prefill_ms"]["full"]) == len(record["prefill_ms"]["reduced"]) == 2
    for chances in record["probability"].values():
        assert all(0 <= chance <= 1 for chance in chances.values())
    if strategy == "none":
        assert record["probability"]["full"] == record["probability"]["reduced"]
    width = 288 * (1 + len(kept))
    with Image.open(tmp_path / "run" / "kept.png") as drawn:
        assert drawn.width >= width


@pytest.mark.slow
def test_a_short_prompt_is_left_alone_and_the_table_says_so(
    program: Program, checkpoint: str, picture: str, tmp_path: Path
) -> None:
    ask = [f"model.id={checkpoint}", f"image={picture}", "prompt=What?", "max_new_tokens=2"]
    done = program(*ask, "task.runs=1", "min_tokens=145", "hydra.run.dir=run")
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert done.err == ""
    assert record["report"]["applied"] == [False]
    assert record["report"]["skipped"] == ["144 visual tokens are fewer than min_tokens=145"]
    assert "as they are: 144 visual tokens" in " ".join(done.out.split())
    assert record["probability"]["full"] == record["probability"]["reduced"]
    done = program(*ask, "min_tokens=145", "strategy=downsample")
    assert "acts before it" in done.line


def test_without_arguments_the_embedded_model_answers(program: Program, tmp_path: Path) -> None:
    done = program()
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("outputs/generate/*/result.json")
    record = json.loads(path.read_text())
    example = json.loads((checkpoint_dir().parent / "example.json").read_text())
    assert record["answers"]["full"] == example["answer"] == record["expected"]
    assert example["question"] in done.out


# -- runs that do not end well ---------------------------------------------------------------------


@pytest.fixture
def ending() -> Iterator[list[Any]]:
    """A task that ends as it is told: `task.name=ending`; raises or calls what is put in here."""
    how: list[Any] = []

    @tasks.register("ending")
    def end(config: Any, output: Path) -> dict[str, Any]:
        found = how[0](output)
        if isinstance(found, BaseException):
            raise found
        return {"found": found}

    yield how
    del tasks._entries["ending"]  # type: ignore[attr-defined]


def test_a_sweep_outlives_a_refused_run(program: Program, probe: list[Any], tmp_path: Path) -> None:
    done = program("task.name=probe", "-m", "scheduler=single", "scheduler.keep=0.5,2,0.25")
    assert done.code == 2
    assert [config.scheduler.keep for config in probe] == [0.5, 0.25]
    assert "tokenreduce: run 1 failed: keep must be a number between 0 and 1, not 2" in done.err
    assert "1 of 3 runs failed" in done.err
    assert "Traceback" not in done.err
    (sweep,) = tmp_path.glob("outputs/probe/*_sweep")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "2"]


@pytest.mark.slow
def test_a_sweep_outlives_a_fault(program: Program, ending: list[Any], tmp_path: Path) -> None:
    """Which keeps its traceback, and another exit code."""
    ending.append(lambda output: None if output.name == "0" else 1 / 0)
    done = program("-m", "task.name=ending", "seed=0,1")
    assert done.code == 1
    assert "ZeroDivisionError" in done.err
    assert "1 of 2 runs failed" in done.err
    assert len(list(tmp_path.glob("outputs/ending/*/*/result.json"))) == 1


def test_a_sweep_of_refused_runs_leaves_nothing(
    program: Program, probe: list[Any], tmp_path: Path
) -> None:
    assert program("-m", "task.name=probe", "max_new_tokens=0,-1").code == 2
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_one_line(program: Program, ending: list[Any], tmp_path: Path) -> None:
    def interrupted(output: Path) -> None:
        raise KeyboardInterrupt

    ending.append(interrupted)
    done = program("task.name=ending")
    assert done.code == 130
    (line,) = done.err.strip().splitlines()
    assert line.startswith("tokenreduce: interrupted; ")
    assert list(tmp_path.iterdir()) == []
    done = program("-m", "task.name=ending", "seed=0,1")
    assert done.code == 130
    assert "Traceback" not in done.err


def test_a_full_disk_is_one_line(program: Program, ending: list[Any], tmp_path: Path) -> None:
    ending.append(lambda output: "x" * 50_000)
    with full_disk(20_000):
        done = program("task.name=ending", "hydra.run.dir=here")
    assert "nothing half written is left" in done.line
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("place", ["file/in", "file", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(
    program: Program, probe: list[Any], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    done = program("task.name=probe", f"hydra.run.dir={place}")
    assert "the folder of the run cannot be written" in done.line
    assert probe == []


def test_a_refused_run_leaves_no_folder(
    program: Program, ending: list[Any], tmp_path: Path
) -> None:
    ending.append(lambda output: OSError(28, "No space left on device"))
    assert "make room" in program("task.name=ending").line
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old.png").touch()
    program("max_new_tokens=0", "hydra.run.dir=mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "old.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_new_tokens=0"], "max_new_tokens must be a whole number of at least 1, not 0"),
        (["seed=abc", "strategy=random"], "seed must be a whole number of at least 0, not 'abc'"),
        (["seed=1.5"], "seed must be a whole number"),
        (["min_tokens=-1"], "min_tokens must be a whole number of at least 0"),
        (["task.runs=-1"], "task.runs must be a whole number of at least 0"),
        (["task.page=1"], "task.page must be true or false, not 1"),
        (["task=train", "task.frozen=vision"], "task.frozen must be a list, written [a,b]"),
        (["task=train", "trainer.learning_rate=fast"], "trainer.learning_rate must be a number"),
        (["task=profile", "task.grid=half"], "task.grid must be a whole number of at least 1"),
        (["task=benchmark", "positions=kept"], "no positions 'kept'; did you mean 'keep'?"),
        (["scheduler.keep=0.25"], "choose scheduler=cosine, linear or single, which have it"),
        (["strategy.score=last"], "choose strategy=fastv, which has it"),
        (["scheduler=single", f"scheduler.layer={'1' * 400}"], "layer"),
        (["strategy=scorer_mlp", "strategy.weights=5"], "weights must be"),
        ([f"image={'x' * 300}", "prompt=a"], "cannot be a path here: File name too long"),
        (["image=~nobody-of-that-name/a.png", "prompt=a"], "home directory"),
        (["evaluate"], "did you mean 'task=evaluate'?"),
        (["--config-dir", "mine", "strategy=tag"], "python/object"),
        (["--config-dir", "mine", "strategy=bomb"], "values with its anchors written out"),
        (["--config-dir", "mine", "strategy=torn"], "is no YAML"),
        (["--config-dir", "long", "scheduler=million"], "bytes, more than an option file may"),
    ],
)
def test_what_cannot_be_meant_is_one_line_before_a_model_is_loaded(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("tokenreduce.inference.loaded.model_source", load)
    mine, long = tmp_path / "mine" / "strategy", tmp_path / "long" / "scheduler"
    for folder in (mine, long):
        folder.mkdir(parents=True)
    words = " ".join(arguments)
    if "strategy=tag" in words:
        (mine / "tag.yaml").write_text('name: !!python/object/apply:os.system ["true"]\n')
    if "strategy=torn" in words:
        (mine / "torn.yaml").write_text("name: [fastv\n")
    if "strategy=bomb" in words:
        rows = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
        rows += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
        (mine / "bomb.yaml").write_text("\n".join(rows))
    if "million" in words:
        rows = ["name: explicit", f"layers: [{','.join(map(str, range(1_000_000)))}]"]
        (long / "million.yaml").write_text("\n".join(rows))
    assert message in program(*arguments).line
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("package", "words"),
    [("accelerate", ["task=train"]), ("datasets", ["task=train", "data=folder"])],
)
def test_a_missing_package_is_named_with_its_extra(
    program: Program, monkeypatch: pytest.MonkeyPatch, package: str, words: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f'needs {package}: pip install "tokenreduce[train]"' in program(*words).line


def test_the_environment_is_not_written_down(
    program: Program, probe: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "hunter2")
    words = [
        "+own.token=${oc.env:A_TOKEN}",
        "+own.other=${own.token}_2",
        "+own.gone=${oc.env:GONE,x}",
    ]
    assert program("task.name=probe", "hydra.run.dir=here", *words).code == 0
    assert probe[0].own.other == "hunter2_2"
    for path in (tmp_path / "here").rglob("*"):
        assert path.is_dir() or "hunter2" not in path.read_text()
    record = json.loads((tmp_path / "here" / "result.json").read_text())
    assert record["config"]["own"]["other"] == "${oc.env:A_TOKEN}_2"
    assert record["config"]["own"]["gone"] == "${oc.env:GONE,x}"


def test_no_number_is_said_and_written_as_null(
    program: Program, ending: list[Any], tmp_path: Path
) -> None:
    ending.append(lambda output: {"full": [float("nan")]})
    with pytest.warns(UserWarning, match=r"found\.full\[0\] is nan"):
        program("task.name=ending", "hydra.run.dir=here")
    text = (tmp_path / "here" / "result.json").read_text()
    assert json.loads(text)["found"] == {"full": [None]}


@pytest.mark.parametrize("word", ["--version", "list", "doctor"])
def test_there_is_an_answer(program: Program, word: str) -> None:
    done = program(word, *(["tasks"] if word == "list" else []))
    assert done.code == 0
    assert done.err == ""
    assert {"--version": "transformers", "list": "evaluate", "doctor": "device"}[word] in done.out


def test_letters_that_the_terminal_lacks_are_escaped(
    program: Program, ending: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    ending.append(lambda output: print("où\udce9"))
    assert program("task.name=ending").code == 0
    stream.flush()
    assert stream.buffer.getvalue().startswith(b"o\\xf9\\udce9")


@pytest.mark.slow
def test_ctrl_c_in_a_process(tmp_path: Path) -> None:
    """With the signal itself, in the middle of loading and running."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tokenreduce", "task=evaluate", "task.limit=64"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell without job control has what it runs in the background ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        time.sleep(0.1)
        if list(tmp_path.glob("outputs/evaluate/*/.hydra/overrides.yaml")):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("tokenreduce: interrupted; ")


@pytest.mark.slow
def test_a_sweep_of_parallel_jobs_outlives_a_refused_one(tmp_path: Path) -> None:
    """Whose refusal comes back from another process."""
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "task=solve"]
    words += ["scheduler=single", "target.flops=0.6,45", "device=cpu"]
    run = subprocess.run(
        [sys.executable, "-m", "tokenreduce", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "tokenreduce: " in run.stderr.splitlines()[-1]
    assert len(list(tmp_path.glob("outputs/solve/*/*/result.json"))) == 1
