"""Smaller pictures: tokens as the processor makes them, and refusals where size changes nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tokenreduce.config import compose
from tokenreduce.downsample import visual_tokens
from tokenreduce.embedded import checkpoint_dir
from tokenreduce.tasks.generate import generate
from tokenreduce.testing.checkpoints import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def fixed() -> Any:
    """LLaVA's: a grid of the same size for every picture."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint_dir())


def picture(width: int = 160, height: int = 120) -> Image.Image:
    return Image.effect_noise((width, height), 50).convert("RGB")


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25, 0.1])
def test_a_picture_gets_about_the_share_of_its_tokens(processor: Any, keep: float) -> None:
    images = [picture(), picture(96, 200)]
    found = tr.downsample(processor, images, keep)
    assert found.full == [visual_tokens(processor, image) for image in images]
    assert found.tokens == [visual_tokens(processor, image) for image in found.images]
    for image, small, n, full in zip(images, found.images, found.tokens, found.full, strict=True):
        assert n == pytest.approx(keep * full, rel=0.15, abs=1)
        assert small.width / small.height == pytest.approx(image.width / image.height, rel=0.1)
    assert [image.size for image in images] == [(160, 120), (96, 200)]


@pytest.mark.slow
def test_a_picture_beyond_the_processors_limit_is_made_smaller_than_it(processor: Any) -> None:
    """The processor itself makes it smaller: only a picture below that has fewer tokens."""
    large = picture(3000, 2000)
    found = tr.downsample(processor, [large], 0.25)
    full = visual_tokens(processor, large)
    assert full < (3000 // 14) * (2000 // 14) // 4
    assert found.tokens[0] == pytest.approx(full / 4, rel=0.15)


def test_a_share_of_one_changes_nothing(processor: Any) -> None:
    image = picture()
    found = tr.downsample(processor, [image], 1.0)
    assert found.images[0] is image
    assert found.tokens == found.full


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, "half"])
def test_a_wrong_share_is_refused(processor: Any, keep: Any) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        tr.downsample(processor, [picture()], keep)


def test_where_size_changes_nothing_it_is_refused_with_the_way_out(fixed: Any) -> None:
    with pytest.raises(ValueError, match=r"at every size .* \(strategy 'pooling'\)"):
        tr.downsample(fixed, [picture()], 0.5)


def test_a_share_that_no_size_has_is_loud(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    tiled = AutoProcessor.from_pretrained(write("llava_next_video", tmp_path))
    with pytest.warns(UserWarning, match="the nearest one has 44"):
        found = tr.downsample(tiled, [picture()], 0.25)
    assert found.tokens == [44]


def test_a_model_cannot_do_it(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(TypeError, match=r"before the processor: make .* tokenreduce.downsample"):
        tr.reduce(model, "downsample")


def run(output: Path, *overrides: str) -> dict[str, Any]:
    image = output / "picture.png"
    picture().save(image)
    config = compose(
        ["strategy=downsample", f"image={image}", "prompt=What is this?", "device=cpu", *overrides]
    )
    found: dict[str, Any] = generate(config, output)
    return found


@pytest.mark.slow
def test_the_command_line_compares_it_with_the_full_picture(
    folder: Path, processor: Any, tmp_path: Path
) -> None:
    numbers = run(tmp_path, f"model.id={folder}", "scheduler.keep=0.5", "task.runs=1")
    report, made = numbers["report"], tr.downsample(processor, [picture()], 0.5)
    assert report["visual_tokens"] == made.full
    assert report["stops"] == [
        {"layer": 0, "keep": made.tokens[0] / made.full[0], "kept": made.tokens}
    ]
    assert report["flops"] < report["flops_full"]
    assert report["kv_bytes"] < report["kv_bytes_full"]
    assert report["applied"] == [True]
    text = report["tokens_per_layer"][0][0] - made.tokens[0]
    share = (text + made.tokens[0]) / (text + made.full[0])
    assert report["kv_bytes"] / report["kv_bytes_full"] == pytest.approx(share)
    assert (tmp_path / "kept.png").is_file()


def test_the_command_line_refuses_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use scheduler=input"):
        run(tmp_path, f"model.id={folder}", "scheduler=single")
    with pytest.raises(ValueError, match="pool their tokens"):
        run(tmp_path)


def test_a_smaller_picture_is_what_the_model_sees(folder: Path, processor: Any) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = tr.downsample(processor, [picture()], 0.5)
    inputs = processor(images=found.images, text=processor.image_token, return_tensors="pt")
    with torch.no_grad(), tr.reduce(model, "none") as reduction:
        model(**inputs)
    assert reduction.report.visual_tokens == found.tokens
