"""The page that shows what a reduction did: right, harmless, whole in one file, and alive."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokenreduce as tr
from tests.viz.scenery import look_at, photo
from tokenreduce.config import compose
from tokenreduce.inference.loaded import load
from tokenreduce.inference.look import look
from tokenreduce.inference.spec import ModelSpec
from tokenreduce.tasks.generate import generate
from tokenreduce.viz import Look, Scene, Stage, write_page
from tokenreduce.viz.chart import chart
from tokenreduce.viz.overlay import heat, overlay
from tokenreduce.viz.page import LEAST, MOST

EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def dropped() -> Look:
    """Four stages of dropping, with scores."""
    return look_at("llava", "fastv", tr.Explicit((1, 3, 4), (0.6, 0.4, 0.2)), [photo(120, 120)])


@pytest.fixture(scope="module")
def merged() -> Look:
    return look_at("llava", "tome", tr.Explicit((0, 2), (0.5, 0.25)), [photo(120, 120)])


@pytest.fixture(scope="module")
def tiled() -> Look:
    return look_at("llava_next", "fastv", tr.Single(2, 0.4), [photo(120, 220)])


def written(look: Look | list[Look], folder: Path, **options: Any) -> str:
    looks = look if isinstance(look, list) else [look]
    return write_page(folder / "report.html", looks, **options).read_text(encoding="utf-8")


def data_of(text: str) -> list[dict[str, Any]]:
    """What the script reads, question by question."""
    found = re.findall(r'<script type="application/json" class="data">(.*?)</script>', text)
    return [json.loads(row) for row in found]


def opened_from(found: list[str]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(row))) for row in found]


def pictures_of(text: str) -> list[Image.Image]:
    return opened_from(re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', text))


def drawn_on(text: str, of: str) -> list[Image.Image]:
    """What lies over the pictures at a stop, such as `2 kept` or `1 scores`."""
    return opened_from(re.findall(rf'data-of="{of}" src="data:image/webp;base64,([^"]+)"', text))


# -- what is written -------------------------------------------------------------------------------


def test_everything_is_in_the_file(dropped: Look, tmp_path: Path) -> None:
    text = written(dropped, tmp_path, title="fastv", facts={"model": "tiny"})
    assert not re.findall(r"<link|@import|url\(|https?://|fetch\(|import\(", text)
    for source in re.findall(r'\b(?:src|href)="([^"]*)"', text):
        assert source.startswith(("data:image/", "#"))
    assert "default-src 'none'" in text  # and the browser holds us to it


def test_what_users_wrote_is_text(dropped: Look, tmp_path: Path) -> None:
    scene = replace(dropped.scenes[0], name=EVIL)
    look = replace(
        dropped,
        question=EVIL,
        expected=EVIL,
        answers={"full": EVIL, "reduced": EVIL},
        probability={"full": {EVIL: 0.5}, "reduced": {EVIL: 0.25}},
        scenes=[scene],
    )
    plain = written(dropped, tmp_path)
    text = written(
        [look, look], tmp_path, title=EVIL, facts={EVIL: EVIL}, details={EVIL: {EVIL: EVIL}}
    )
    assert EVIL not in text
    assert text.count("<script") == plain.count("<script") + 1  # the data of the second question
    assert text.count("<img") == 2 * plain.count("<img")
    assert text.count("&lt;script&gt;") > 10


def test_the_same_look_is_the_same_file(dropped: Look, tmp_path: Path) -> None:
    one = written(dropped, tmp_path, title="t", details={"b": {"z": 1, "a": 2}})
    assert one == written(dropped, tmp_path, title="t", details={"b": {"z": 1, "a": 2}})


def test_the_script_is_told_what_stays(dropped: Look, tmp_path: Path) -> None:
    (data,) = data_of(written(dropped, tmp_path))
    scene = dropped.scenes[0]
    assert data["stages"] == [None, 1, 3, 4]
    assert data["captions"][2] == "from layer 3 on: 10 visual tokens"
    (figure,) = data["figures"]
    for told, stage in zip(figure["stages"], scene.stages, strict=True):
        assert [i for i, bit in enumerate(told["kept"]) if bit == "1"] == list(stage.kept)
        assert "group" not in told
    above = figure["stages"][1]["above"]
    assert np.argmax(above) == np.argmax(scene.stages[1].score)
    assert (min(above), max(above)) == (0, 100)
    later = figure["stages"][2]["above"]
    assert {i for i, x in enumerate(later) if x is not None} == set(scene.stages[1].kept)


def test_the_script_is_told_what_is_merged(merged: Look, tmp_path: Path) -> None:
    (data,) = data_of(written(merged, tmp_path))
    assert data["captions"][1].endswith("merged")
    told = data["figures"][0]["stages"][2]
    assert told["group"] == list(merged.scenes[0].stages[2].group or ())
    assert sorted(set(told["group"])) == list(range(told["kept"].count("1")))


def test_overview_and_details_are_two_pictures(tiled: Look, tmp_path: Path) -> None:
    text = written(tiled, tmp_path)
    (data,) = data_of(text)
    overview, _ = data["figures"]
    assert len(pictures_of(text)) == 2
    assert "overview, 9 of 30 tokens" in text
    assert "details, 18 of 30 tokens" in text
    assert overview["tokens"] == list(range(1, 10))
    drawn = sum(figure["stages"][1]["kept"].count("1") for figure in data["figures"])
    (scene,) = tiled.scenes
    empty = scene.boxes[:, 2] <= scene.boxes[:, 0]
    assert empty.any()  # separators: they count, but nobody sees them
    assert drawn == sum(not empty[i] for i in scene.stages[1].kept)


@pytest.mark.parametrize("case", ["dropped", "merged", "scores"])
def test_what_lies_over_a_picture_is_what_the_strip_shows(
    case: str, dropped: Look, merged: Look, tmp_path: Path
) -> None:
    look = merged if case == "merged" else dropped
    (scene,), mode = look.scenes, "scores" if case == "scores" else "kept"
    text = written(look, tmp_path)
    (picture,) = pictures_of(text)
    for stop in (1, 2):
        stage = scene.stages[stop]
        (sheet,) = drawn_on(text, f"{stop} {mode}")
        under = picture.convert("L" if mode == "scores" else "RGB").convert("RGBA")
        seen = np.asarray(Image.alpha_composite(under, sheet).convert("RGB"))
        expected = (
            heat(picture, scene.boxes, stage.score or ())
            if mode == "scores"
            else overlay(picture, scene.boxes, stage.kept, stage.group)
        )
        apart = (seen != np.asarray(expected)).any(axis=2)
        assert not apart.any() if case != "merged" else 0 < apart.mean() < 0.01  # the dots
    assert drawn_on(text, "0 scores") == []


@pytest.mark.parametrize(
    ("size", "shown", "kind"),
    [
        ((4000, 3000), (MOST, MOST * 3 // 4), "JPEG"),
        ((MOST, 500), (MOST, 500), "JPEG"),
        ((96, 48), (LEAST, LEAST // 2), "PNG"),
        ((1, 700), (1, 700), "JPEG"),
    ],
)
def test_pictures_have_a_size_to_look_at(
    dropped: Look, tmp_path: Path, size: tuple[int, int], shown: tuple[int, int], kind: str
) -> None:
    scene = replace(dropped.scenes[0], image=Image.new("RGB", size, "teal"))
    text = written(replace(dropped, scenes=[scene]), tmp_path)
    (picture,) = pictures_of(text)
    assert (picture.size, picture.format) == (shown, kind)
    (figure,) = data_of(text)[0]["figures"]
    assert np.max(figure["boxes"]) == max(shown)
    assert {sheet.size for sheet in drawn_on(text, "1 kept")} == {shown}


def test_answers_costs_and_facts_are_there(dropped: Look, tmp_path: Path) -> None:
    look = replace(
        dropped,
        answers={"full": "a cat", "reduced": "a dog"},
        expected="a cat",
        probability={"full": {"a cat": 0.75, "a dog": 0.125}, "reduced": {"a cat": 0.25}},
        prefill_ms={"full": [8.0, 10.0, 30.0], "reduced": [4.0, 5.0, 6.0]},
        prefill_ratio=0.5,
    )
    text = written(look, tmp_path, facts={"commit": "abc", "gone": None}, details={"Versions": {}})
    for part in ("a cat", "a dog", "0.7500", "0.2500", "0.1250", "10.0 ms", "5.0 ms", "50.0 %"):
        assert part in text
    assert text.count(">✓<") == text.count(">✗<") == 1
    assert look.report["convention"] in text
    assert "median of 3 runs" in text
    assert "abc" in text
    assert "gone" not in re.findall(r"<dt>(.*?)</dt>", text)
    assert "prefill time" not in written(dropped, tmp_path)
    other = written(replace(look, right={"full": True, "reduced": True}), tmp_path)
    assert other.count(">✓<") == 2  # another way to say it is right, too


def test_several_questions_have_an_index(dropped: Look, merged: Look, tmp_path: Path) -> None:
    other = replace(merged, answers={"full": "x", "reduced": "y"})
    text = written([dropped, other], tmp_path)
    assert "<strong>1 of 2</strong>" in text
    assert re.findall(r'href="#question=(\d)"', text) == ["1", "2"]
    assert len(data_of(text)) == 2
    assert "<nav" not in written(dropped, tmp_path)


def test_a_question_without_pictures_or_scores_is_shown(dropped: Look, tmp_path: Path) -> None:
    text = written(replace(dropped, scenes=[]), tmp_path)
    assert "No picture." in text
    plain = Scene(
        "p", Image.new("RGB", (8, 8)), np.zeros((2, 4)), np.zeros(2, int), (Stage([0, 1], "all"),)
    )
    text = written(replace(dropped, scenes=[plain]), tmp_path)
    assert 'class="scores"' not in text
    assert 'type="range"' not in text


def test_nothing_to_look_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        write_page(tmp_path / "report.html", [])
    assert not list(tmp_path.iterdir())


# -- the chart -------------------------------------------------------------------------------------


def report(layers: list[int], stops: dict[int, int], visual: int = 100) -> dict[str, Any]:
    return {
        "visual_tokens": [visual],
        "text_tokens": [layers[0] - stops.get(0, visual)],
        "tokens_per_layer": [[n] for n in layers],
        "stops": [{"layer": i, "kept": [n]} for i, n in stops.items()],
    }


def test_bars_are_as_high_as_layers_have_tokens() -> None:
    found = chart(report([120, 120, 70, 70, 30], {2: 50, 4: 10}))
    for bar, visual in zip(found.bars, [100, 100, 50, 50, 10], strict=True):
        assert bar.full == 100
        assert bar.text == pytest.approx(100 * 20 / 120, abs=0.01)
        assert bar.visual == pytest.approx(100 * (20 + visual) / 120, abs=0.01)  # behind the text
    assert [bar.stage for bar in found.bars] == [-1, -1, 2, 2, 4]
    assert found.says == (
        "Tokens in each of 5 layers: 100 visual tokens, 50 from layer 2 on, 10 from layer 4 on."
    )


@pytest.mark.parametrize("top", [1, 7, 120, 999, 2880, 100_000])
def test_lines_are_at_round_numbers(top: int) -> None:
    found = chart(report([top + 20] * 3, {}, visual=top))
    numbers = [int(label) for _, label in found.lines]
    assert 2 <= len(numbers) <= 5
    assert numbers[0] == 0
    assert all(re.fullmatch(r"[125]0*|[468]0*|15|0", str(n)) for n in numbers[:2])
    assert numbers[-1] <= top + 20


def test_many_layers_have_labels_with_room() -> None:
    found = chart(report([120] * 80, {}))
    assert [bar.label for bar in found.bars[:6]] == ["0", "", "", "", "", "5"]


# -- in a browser ----------------------------------------------------------------------------------

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed to open the page in")


def shown(text: str) -> list[str]:
    """What lies over the pictures of a document."""
    drawn = re.findall(r'<img class="drawn" data-of="(.*?)"[^>]*?alt=""( hidden="")?>', text)
    assert len(drawn) > 1
    return [of for of, hidden in drawn if not hidden]


Open = Callable[..., tuple[str, str]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens a page without a window: its document once the script has run, and what it logged."""

    def run(path: Path, place: str = "", *options: str) -> tuple[str, str]:
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=4000",
            "--enable-logging=stderr",
            *(options or ("--dump-dom",)),
            f"{path.as_uri()}{place}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)

    return run


def probed(look: Look, folder: Path, script: str) -> Path:
    """A page that also tells what it shows."""
    path = write_page(folder / "report.html", [look])
    path.write_text(path.read_text().replace("</body>", f"{script}</body>"))
    return path


@browser
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_page_opens_at_a_stop(dropped: Look, tmp_path: Path, opened: Open, stop: int) -> None:
    path = write_page(tmp_path / "report.html", [dropped])
    text, logged = opened(path, f"#stop={stop}")
    assert logged == ""
    assert 'data-ready="yes"' in text
    assert f'data-stop="{stop}" data-mode="kept"' in text
    assert shown(text) == [f"{stop} kept"]
    caption = data_of(text)[0]["captions"][stop]
    assert re.search(rf'aria-live="polite">{caption}<', text)
    assert f'aria-valuetext="{caption}"' in text
    on = re.findall(r'<li data-stage="(-?\d+)"[^>]*class="on"', text)
    assert set(on) == {str(dropped.scenes[0].stages[stop].layer or -1)}


@browser
def test_a_token_is_outlined_with_what_it_was_merged_with(
    merged: Look, tmp_path: Path, opened: Open
) -> None:
    moves = "<script>questions[0].figures[0].tell(7)</script>"
    text, _ = opened(probed(merged, tmp_path, moves))
    group = list(merged.scenes[0].stages[2].group or ())
    many = group.count(group[7])
    assert many > 1
    assert f'class="here">token 8: one of {many} merged' in text
    (path,) = re.findall(r'<path d="(.*?)">', text)
    assert path.count("Z") == many


@browser
def test_slider_and_switch_work(dropped: Look, tmp_path: Path, opened: Open) -> None:
    moves = """<script>
    const slider = document.querySelector(".stop"), box = document.querySelector(".scores");
    slider.stepDown(); slider.dispatchEvent(new Event("input"));
    box.click();
    const area = document.querySelector(".frame").getBoundingClientRect();
    document.querySelector(".frame").dispatchEvent(new PointerEvent("pointermove",
      {clientX: area.left + 3, clientY: area.top + 3}));
    document.body.dataset.hash = location.hash;
    slider.focus(); document.body.dataset.focus = document.activeElement.className;
    </script>"""
    text, logged = opened(probed(dropped, tmp_path, moves))
    assert logged == ""
    assert 'data-stop="2" data-mode="scores"' in text
    assert shown(text) == ["2 scores"]
    assert 'data-hash="#question=1&amp;stop=2&amp;scores=1"' in text
    assert 'data-focus="stop"' in text  # a native slider: arrows, Home, End, Page Up and Down
    assert re.search(r'class="here">token 1: (stays|dropped)', text)
    assert '<path d="M0 0H96V96H0Z">' in text


@pytest.mark.slow
@browser
def test_a_question_of_several_is_meant_alone(
    dropped: Look, merged: Look, tmp_path: Path, opened: Open
) -> None:
    path = write_page(tmp_path / "report.html", [dropped, merged])
    text, _ = opened(path, "")  # nothing asked for: each at its last stop
    assert re.findall(r'data-stop="(\d)" data-mode', text)[0] == "3"
    for place, stops in (("#stop=2", ["2", "2"]), ("#question=2&stop=1", ["3", "1"])):
        text, _ = opened(path, place)
        assert re.findall(r'data-stop="(\d)" data-mode', text) == stops


@browser
def test_harmful_text_does_not_run(dropped: Look, tmp_path: Path, opened: Open) -> None:
    mark = "<img src=x onerror=\"document.body.dataset.harm='yes'\">"
    scene = replace(dropped.scenes[0], name=mark)
    look = replace(dropped, question=mark, answers={"full": mark, "reduced": mark}, scenes=[scene])
    text, logged = opened(write_page(tmp_path / "report.html", [look], title=mark))
    assert logged == ""
    assert "data-harm" not in text
    assert 'data-ready="yes"' in text


@browser
def test_a_broken_script_would_be_seen(dropped: Look, tmp_path: Path, opened: Open) -> None:
    """The check of the console can fail."""
    path = write_page(tmp_path / "report.html", [dropped])
    path.write_text(path.read_text().replace("follow();\ndocument", "follow(nobody);\ndocument"))
    text, logged = opened(path)
    assert "nobody is not defined" in logged
    assert 'data-ready="yes"' not in text


@browser
def test_nothing_sticks_out_on_a_phone(dropped: Look, tmp_path: Path, opened: Open) -> None:
    long = replace(dropped, question="w" * 300, answers={"full": "v" * 200, "reduced": "u u " * 90})
    tell = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"
    path = probed(long, tmp_path, tell)
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<script>onmessage = (e) => { document.body.dataset.width = e.data }</script>"
        f'<iframe src="{path.as_uri()}" width="360" height="640" style="border:0"></iframe>'
    )
    text, _ = opened(outer)
    (width,) = re.findall(r'data-width="(\d+)"', text)
    assert int(width) <= 360


@browser
def test_a_screenshot_shows_the_dropped_patches(
    dropped: Look, tmp_path: Path, opened: Open
) -> None:
    path = write_page(tmp_path / "report.html", [dropped])
    light = []
    for stop in (0, 3):
        shot = tmp_path / f"{stop}.png"
        opened(path, f"#stop={stop}", "--window-size=1000,900", f"--screenshot={shot}")
        with Image.open(shot) as image:
            assert image.size == (1000, 900)
            light.append(np.asarray(image.convert("L"), dtype=float).mean())
    assert light[1] < light[0] - 10


# -- the task --------------------------------------------------------------------------------------


def test_the_task_writes_page_strip_and_panels(tmp_path: Path) -> None:
    config = compose(["task.runs=0", "task.panels=64", "task.scores=true", "device=cpu"])
    numbers = generate(config, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert numbers["page"] == str(tmp_path / "report.html")
    assert numbers["prefill_ratio"] is None
    for part in ("pyramid_drop, pyramid", numbers["question"], "Configuration", "Versions"):
        assert part in text
    assert str(Path(numbers["images"][0]).parent) not in text  # where it lay is nobody's business
    (data,) = data_of(text)
    for told, row in zip(data["figures"][0]["stages"][1:], numbers["kept"].values(), strict=True):
        assert [i for i, bit in enumerate(told["kept"]) if bit == "1"] == row
    names = sorted(path.name for path in (tmp_path / "panels").iterdir())
    scores = [f"{i}_scores.png" for i in (1, 2, 3)]
    assert names == sorted([*(f"{i}.png" for i in range(4)), *scores])
    assert [Path(path).name for path in numbers["panels"]][:2] == ["0.png", "1.png"]


def test_the_task_leaves_the_page_out(tmp_path: Path) -> None:
    numbers = generate(compose(["task.runs=0", "task.page=false", "device=cpu"]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept.png"}
    assert "page" not in numbers


def test_a_wrong_size_of_panels_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreduce.tasks.generate.load", None)  # nothing is loaded before
    with pytest.raises(ValueError, match="panels='big' is no number of pixels"):
        generate(compose(["task.panels=big"]), tmp_path)


def test_why_nothing_was_reduced_is_told(dropped: Look, tmp_path: Path) -> None:
    reason = "25 visual tokens are fewer than min_tokens=99"
    look = replace(dropped, report={**dropped.report, "skipped": [reason]})
    assert f"Not reduced: {reason}." in written(look, tmp_path)
    assert "Not reduced" not in written(dropped, tmp_path)


def test_one_question_is_looked_at_and_judged() -> None:
    loaded = load(ModelSpec(device="cpu"))
    asked: list[str] = []

    def accepts(answer: str) -> bool:
        asked.append(answer)
        return len(asked) == 1

    seen = look(
        loaded,
        "what is in the red circle?",
        [photo(96, 96)],
        "fastv",
        expected="another answer",
        accepts=accepts,
        limit=2,
    )
    assert asked == list(seen.answers.values())
    assert seen.right == {"full": True, "reduced": False}
    assert seen.prefill_ms == {}
    visual = seen.report["visual_tokens"][0]
    assert [stop["kept"] for stop in seen.report["stops"]] == [[visual // 2]]  # FastV's own
    assert len(seen.kept[2]) == visual // 2
    for chances in seen.probability.values():
        assert set(chances) == set(seen.answers.values())
    (scene,) = seen.scenes
    assert {i: list(row) for i, row in seen.kept.items()} == {
        stage.layer: list(stage.kept) for stage in scene.stages[1:]
    }
    assert seen.same == (seen.answers["full"] == seen.answers["reduced"])


def test_a_page_says_what_to_do_where_no_time_is_saved(dropped: Look, tmp_path: Path) -> None:
    times = {"full": [74.0], "reduced": [75.0]}
    slow = replace(dropped, prefill_ms=times, prefill_ratio=75 / 74)
    text = write_page(tmp_path / "slow.html", [slow]).read_text()
    assert "says from how many on it pays" in text
    fast = replace(slow, prefill_ratio=0.5)
    assert "it pays" not in write_page(tmp_path / "fast.html", [fast]).read_text()


def test_a_page_begins_with_its_summary(dropped: Look, tmp_path: Path) -> None:
    lines = ["Full model: 90.0 % right.", "Shown below: 2 of 60 questions."]
    path = write_page(tmp_path / "report.html", [dropped, dropped], summary=lines)
    text = path.read_text()
    assert 0 < text.index(lines[0]) < text.index(lines[1]) < text.index("Of those shown, ")
