"""`task=solve`: what it finds, prints, writes and refuses; and the search by milliseconds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import tokenreduce as tr
from tokenreduce import cli, presets
from tokenreduce.config import build_scheduler, compose, model_spec
from tokenreduce.cost import average_tokens, cost, model_cost, shape_of
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.inference.loaded import read_sizes
from tokenreduce.inference.spec import ModelSpec
from tokenreduce.program.rules import rule_of
from tokenreduce.schedulers import Explicit, Pyramid, Single
from tokenreduce.solving import timing
from tokenreduce.solving.summary import stages
from tokenreduce.tasks.solve import pictures

Run = Callable[..., tuple[int, dict[str, Any], str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`tokenreduce task=solve ...` in this process: exit code, result, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.FULL_ERROR, raising=False)

    def call(*words: str) -> tuple[int, dict[str, Any], str, str]:
        arguments = ["tokenreduce", "task=solve", "device=cpu", "hydra.run.dir=run", *words]
        monkeypatch.setattr(sys, "argv", arguments)
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        path = tmp_path / "run" / "result.json"
        return code, json.loads(path.read_text()) if path.exists() else {}, out, err

    return call


def test_the_example_of_the_help(run: Run) -> None:
    """Every number of `target.flops=0.45`, computed again."""
    code, found, out, err = run("target.flops=0.45")
    assert (code, err) == (0, "")
    config, _ = read_sizes(ModelSpec())
    layers = (1, 2, 4, 6)  # the strategy's own pyramid begins at layer 2 and would leave no token
    schedule = tr.solve(config, visual=144, text=64, flops=0.45, rule="explicit", layers=layers)
    price, whole = cost(config, schedule, 144, 64), model_cost(config, schedule, 1, text=64)
    made = tr.Explicit(*(found["scheduler"][key] for key in ("layers", "keeps")))
    assert made.stops(8) == schedule.stops(8)
    assert schedule.stops(8)[-1].count(144) >= 2
    assert "would leave next to no tokens" in out
    assert found["flops_share"] == price.share <= 0.45
    assert found["model_share"] == whole.share > price.share
    assert found["average_tokens"] == average_tokens(schedule.stops(8), 8, 144)
    assert found["kv_share"] == price.kv_bytes / price.kv_bytes_full
    assert [row for row in found["flops"] if row[0] == "whole model"] == [
        ["whole model", whole.flops_full, whole.flops]
    ]
    assert {name: ours for name, _, ours in found["bytes"]} == {
        "KV cache": price.kv_bytes,
        "activations of a prefill": whole.activations.prefill,
        "activations kept in training": whole.activations.stored,
        "the same, checkpointed": whole.activations.checkpointed,
    }
    assert [row["visual"] for row in found["stages"]] == sorted(
        {n - 64 for n in price.tokens_per_layer}, reverse=True
    )
    for text in (f"{price.share:.1%}", "2 to 3", "vision tower", " ".join(found["words"])):
        assert text in out


def written() -> list[str]:
    """Every line with `tokenreduce task=solve ...` of the README, the pages and the help."""
    root = Path(__file__).parents[2]
    places = [root / "README.md", *root.glob("docs/*.md"), *root.glob("conf/hydra/help/*.yaml")]
    lines = [line for place in places for line in place.read_text().splitlines()]
    asked = (re.match(r"\s*tokenreduce (task=solve .*?)(\s\s|#|$)", line) for line in lines)
    return sorted({found[1].strip() for found in asked if found})


@pytest.mark.parametrize("line", written())
def test_what_the_pages_write_leaves_tokens(run: Run, line: str) -> None:
    """The first answer that a reader sees is a sensible one, without a warning."""
    code, found, _, err = run(*line.split()[1:])
    assert (code, err) == (0, "")
    assert found["stages"][-1]["visual"] >= 2


def test_there_are_lines_on_the_pages() -> None:
    assert "task=solve target.flops=0.45" in written()


def test_tokens_that_vanish_under_a_named_schedule_are_told(run: Run) -> None:
    with pytest.warns(UserWarning, match=r"^0 of 144 visual tokens are left from layer 2 on"):
        code, found, _, _ = run("scheduler=pyramid", "target.flops=0.45")
    assert code == 0
    assert found["scheduler"]["name"] == "pyramid"


def test_the_words_and_the_option_file_choose_what_was_found(run: Run, tmp_path: Path) -> None:
    code, found, out, _ = run(
        "scheduler=single", "scheduler.layer=1", "target.average=100", "task.save=mine"
    )
    assert code == 0
    config = compose(found["words"])
    assert build_scheduler(config) == Single(1, found["scheduler"]["keep"])
    path = Path(found["preset"])
    assert path == tmp_path / "run" / "conf" / "scheduler" / "mine.yaml"
    assert OmegaConf.to_container(OmegaConf.load(path)) == found["scheduler"]
    assert "target.average=100" in path.read_text().splitlines()[0]
    assert f"tokenreduce --config-dir {path.parents[1]} scheduler=mine" in out
    sys.argv[1:] = ["--config-dir", str(path.parents[1]), "scheduler=mine", "--cfg", "job"]
    cli.main()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "visual"),
    [
        (["model=llava_1_5_7b", "target.flops=0.5"], 576),
        (["model=llava_1_5_7b", "target.kv_bytes=0.5", "task.pictures=2"], 1152),
        (["model=qwen2_5_vl_7b", "target.average=100", "task.pictures=[[24,32]]"], 192),
        (["model=qwen2_5_vl_7b", "target.average=100", "task.pictures=[[2,24,32]]"], 384),
        (["model=llava_next_7b", "target.flops=0.5", "task.visual=2880", "task.pictures=5"], 2880),
        (["model=llama_8x1536", "target.flops=0.5", "task.visual=300"], 300),
    ],
)
def test_sizes_of_presets_are_enough(run: Run, words: list[str], visual: int) -> None:
    code, found, out, err = run(*words)
    assert (code, err) == (0, "")
    assert found["visual"] == visual
    assert (found["model_share"] is None) == ("llama_8x1536" in words[0])
    assert ("Vision tower not counted" in out) == ("llama_8x1536" in words[0])


def test_a_file_of_sizes_and_sizes_by_hand(run: Run) -> None:
    code, found, _, _ = run(f"model.id={checkpoint_dir() / 'config.json'}", "target.flops=0.6")
    assert (code, found["visual"]) == (0, 144)
    sizes = (
        "+model.shape={model_type:llama,hidden_size:64,num_hidden_layers:8,"
        "num_attention_heads:4,intermediate_size:128,vocab_size:100}"
    )
    code, found, _, _ = run(sizes, "task.visual=50", "target.average=30")
    assert (code, found["visual"]) == (0, 50)


REFUSED = {
    "no target": ([], r"exactly one of target.average=\.\.\..*not none"),
    "two": (["target.flops=0.5", "target.ms=3"], "not flops and ms"),
    "out of reach": (["target.average=9"], "infeasible: the minimum is 36 visual tokens per layer"),
    "percent": (["target.flops=45"], "between 0 and 1"),
    "no time": (["target.ms=0"], "above 0, not 0"),
    "text for time": (["target.ms=fast"], "not 'fast'"),
    "no share": (["scheduler=stochastic", "target.flops=0.5"], "scheduler=stochastic has no share"),
    "nothing to do": (["strategy=none", "target.flops=0.5"], "strategy=none reduces nothing"),
    "pictures": (["strategy=downsample", "target.flops=0.5"], "reduces nothing inside"),
    "any size": (
        ["model=qwen2_5_vl_7b", "target.flops=0.5"],
        r"task\.visual=\.\.\. is needed.*rows",
    ),
    "tiles": (["model=llava_next_7b", "target.flops=0.5"], r"task\.visual=\.\.\. is needed.*tiles"),
    "no pictures": (["target.flops=0.5", "task.pictures=[3]"], r"patches as \[\[rows, columns\]\]"),
    "a name that ships": (["target.flops=0.5", "task.save=pyramid"], "an option that ships"),
    "no name": (["target.flops=0.5", "task.save='../x'"], "made of letters"),
    "convention": (["target.flops=0.5", "task.convention=F4"], "no FLOPs convention 'F4'"),
    "visual": (["target.flops=0.5", "task.visual=0"], "task.visual must be"),
    "mistyped": (["target.flop=0.5"], "did you mean 'target.flops'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(run: Run, case: str) -> None:
    words, message = REFUSED[case]
    code, found, _, err = run(*words)
    assert (code, found) == (2, {})
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


@pytest.mark.slow
def test_milliseconds_are_measured_on_the_model(run: Run) -> None:
    quick = ["task.rounds=2", "task.shares=[0.25,0.5]", "task.tries=1"]
    code, found, out, err = run("target.ms=100000", *quick)
    assert (code, err) == (0, "")
    assert found["ms"]["measured"] == found["ms"]["unreduced"] > 0
    assert found["scheduler"]["ratio"] == 1.0
    assert [share for share, _ in found["ms"]["points"]] == [0.0, 0.25, 0.5, 1.0]
    assert "prefill, measured" in out
    assert found["visual"] == 144  # of the embedded model's picture
    code, _, _, err = run("target.ms=0.001", *quick)
    assert code == 2
    assert "infeasible: the minimum is " in err
    assert " ms " in err


def never(low: float, high: float) -> bool:
    return False


def clock(share: float) -> float:
    """A model that takes 10 ms without visual tokens and 30 with all of them."""
    return 10 + 20 * share**1.5


def search(target: float, tries: int = 4, same: Callable[[float, float], bool] = never) -> Any:
    asked: list[float] = []

    def measure(shares: Any) -> list[float]:
        asked.extend(shares)
        return [clock(share) for share in shares]

    points = {share: clock(share) for share in (0.0, 0.25, 0.5, 0.75)}
    return timing.find(target, 30.0, points, measure, same, tries), asked


@pytest.mark.parametrize("target", [10.5, 14.0, 20.0, 25.0, 29.5])
def test_the_search_ends_below_the_target_and_near_it(target: float) -> None:
    found, asked = search(target)
    assert 1 <= len(asked) <= 4
    assert found.ms == clock(found.share) <= target
    assert target - found.ms < 0.6
    assert found.points[found.share] == found.ms


def test_the_search_stops_where_no_count_lies_between() -> None:
    found, asked = search(14.0, same=lambda low, high: high - low < 0.3)
    assert asked == []
    assert found.share == 0.25


def test_the_search_says_what_cannot_be_had() -> None:
    with pytest.raises(ValueError, match=r"the minimum is 10 ms with 0 as the share, of 30 ms"):
        search(9.0)
    found, asked = search(31.0)
    assert (found.share, found.ms, asked) == (1.0, 30.0, [])


def test_stages_are_runs_of_layers() -> None:
    assert stages([9, 9, 7, 7, 7, 6], 4) == [
        {"layers": [0, 1], "visual": 5},
        {"layers": [2, 4], "visual": 3},
        {"layers": [5, 5], "visual": 2},
    ]


def test_rules_keep_their_options() -> None:
    config = compose(["task=solve", "scheduler=explicit", "scheduler.layers=[1,2]"])
    assert rule_of(config) == ("explicit", {"layers": (1, 2), "rounding": "nearest"})
    assert pictures(config) == 1


def test_words_leave_out_what_is_usual() -> None:
    assert presets.words(Pyramid(), "random") == ["strategy=random", "scheduler=pyramid"]
    given = Explicit((0.25, 4), (0.5, 0.125))
    assert presets.words(given, "fastv")[2:] == [
        "scheduler.layers=[0.25,4]",
        "scheduler.keeps=[0.5,0.125]",
    ]


def test_presets_have_the_sizes_of_their_models() -> None:
    assert shape_of(read_sizes(model_spec(compose(["model=llava_1_5_7b"])))[0]).layers == 32
