"""Gemma 3 and PaliGemma from their folders.

PaliGemma has no chats: its processor is called with a text, and puts the images before `<bos>`.
"""

from __future__ import annotations

import pytest
import torch

import tokenreduce as tr
from tests.adapters.user import AT, ask, check, image, load
from tokenreduce.testing.models import IMAGE

pytestmark = pytest.mark.filterwarnings(  # of PaliGemma's processor, which gives numpy a tensor
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

IMAGES = [image(30, 50), image(40, 25, seed=1)]
GRID = (1, 4, 4)
SQUARE = (1, 5, 5)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return load("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module", params=["paligemma", "paligemma2"])
def paligemma(request, tmp_path_factory):
    options = {"attn_implementation": "eager"} if request.param == "paligemma2" else {}
    return load(request.param, tmp_path_factory.mktemp(request.param), **options)


def test_one_image_and_two(gemma3):
    processor, model = gemma3
    check(model, ask(processor, IMAGES[:1]), [[GRID]])
    check(model, ask(processor, IMAGES), [[GRID] * 2])


def test_a_batch_of_prompts(gemma3):
    processor, model = gemma3
    check(model, ask(processor, IMAGES[:1], [], IMAGES), [[GRID], [], [GRID] * 2])


def test_beams(gemma3):
    processor, model = gemma3
    reduction = check(model, ask(processor, IMAGES), [[GRID] * 2] * 3, num_beams=3)
    kept = reduction.kept[4]
    assert all(torch.equal(x, kept[0]) for x in kept)


def test_pan_and_scan_gives_a_picture_per_crop(gemma3):
    processor, model = gemma3
    wide = image(32, 96, seed=2)
    inputs = processor(
        text="<start_of_image> What is this ?",
        images=[wide["image"]],
        return_tensors="pt",
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=3,
    )
    assert len(inputs["pixel_values"]) == 4
    check(model, dict(inputs), [[GRID] * 4])


def described(processor, *prompts, **options):
    """The model's inputs for texts behind images."""
    text = "<image>" * len(prompts[0]) + "What is this ?"
    return dict(
        processor(
            text=[text] * len(prompts),
            images=[[part["image"] for part in parts] for parts in prompts],
            return_tensors="pt",
            padding=True,
            **options,
        )
    )


def test_images_before_the_text(paligemma):
    processor, model = paligemma
    for n in (1, 2):
        inputs = described(processor, IMAGES[:n])
        ids = inputs["input_ids"][0].tolist()
        assert ids[: 25 * n + 1] == [IMAGE] * (25 * n) + [1]
        reduction = check(model, inputs, [[SQUARE] * n])
        assert reduction.kept[0][0].tolist() != list(range(len(reduction.kept[0][0])))


def test_two_prompts(paligemma):
    processor, model = paligemma
    inputs = described(processor, IMAGES[:1], IMAGES[1:])
    check(model, inputs, [[SQUARE]] * 2)


def test_training_on_a_suffix(paligemma):
    """Prompts see themselves in both directions, answers what comes before; the loss has all."""
    processor, model = paligemma
    inputs = described(processor, IMAGES[:1], IMAGES[1:], suffix=["this one", "how many are there"])
    assert inputs["token_type_ids"].unique().tolist() == [0, 1]
    with tr.reduce(model, "pyramid_drop", AT) as reduction:
        loss = model(**inputs).loss
        loss.backward()
        assert [len(x) for x in reduction.kept[4]] == [6, 6]
    assert torch.isfinite(loss)
    grown = model.model.language_model.layers[-1].self_attn.q_proj.weight.grad
    assert grown.abs().sum() > 0
    model.zero_grad()
