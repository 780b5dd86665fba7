"""Pictures and prompts at the edge of what a processor takes, under a reduction that drops all."""

from __future__ import annotations

import warnings

import pytest
import torch

import tokenreduce as tr
from tests.adapters.user import ask, image, load, video
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, IMAGE

STOPS = tr.Explicit((0, 2, 4), (0.5, 0.25, 0.0))
SIZES = {"a pixel": (1, 1), "below a patch": (3, 3), "a row": (8, 200), "a column": (200, 8)}
READ = (
    "qwen2_5_vl",
    "qwen3_vl",
    "llava_next_video",
    "llava_onevision",
    "internvl",
    "perception_lm",
)


@pytest.fixture(scope="module", params=READ)
def loaded(request, tmp_path_factory):
    return request.param, *load(request.param, tmp_path_factory.mktemp(request.param))


def reduced(model, inputs, strategy="fastervlm"):
    with tr.reduce(model, strategy, STOPS) as reduction, torch.no_grad():
        out = model(**inputs)
        [n] = reduction.report.visual_tokens
        kept = [stop["kept"] for stop in reduction.report.stops]
        pictures = reduction.pictures[0]
    assert kept == [[stop.count(n)] for stop in STOPS.stops(6)]
    assert bool(out.logits.isfinite().all())
    assert sum(map(len, pictures)) == n
    return n


@pytest.mark.parametrize("size", SIZES)
def test_tiny_and_narrow_pictures(loaded, size):
    name, processor, model = loaded
    inputs = ask(processor, [image(*SIZES[size])])
    ids = tr.adapters[name if name in tr.adapters else "qwen2_vl"]().visual_ids(
        model.base_model.config
    )
    placeholders = sum(int((inputs["input_ids"] == i).sum()) for i in set(ids.values()))
    assert reduced(model, inputs) == placeholders > 0


def test_a_video_of_one_frame(loaded):
    name, processor, model = loaded
    if name == "qwen3_vl":  # its processor wants two
        with pytest.raises(ValueError, match="temporal_factor"):
            ask(processor, [video(1, 24, 33)])
    else:
        assert reduced(model, ask(processor, [video(1, 24, 33)])) > 0


@pytest.mark.parametrize("strategy", ["random", "pooling", "pyramid_drop", "cdpruner"])
def test_keeping_none_at_all(strategy):
    """At the input, and in the middle: text goes on alone."""
    for name in ("llava", "llava_next", "qwen3_vl", "gemma3", "paligemma"):
        model, given = FAMILIES[name].model(), batch(FAMILIES[name], (1, 0, 2))
        for layer in (0, 3):
            with tr.reduce(model, strategy, tr.Single(layer, 0.0)) as reduction, torch.no_grad():
                logits = given.run(model, use_cache=False).logits
                text = (given.real & ~given.visual).sum(1).tolist()
                assert reduction.report.tokens_per_layer[layer] == text
                assert [len(rows) for rows in reduction.kept[layer]] == [0, 0, 0]
            assert bool(logits[given.real].isfinite().all())


def test_a_placeholder_in_a_row_of_text():
    """Without a picture it is a word like any other; beside pictures the model's own check sees."""
    model, given = FAMILIES["llava"].model(), batch(FAMILIES["llava"], (1, 0))
    text = torch.tensor([[1, 20, IMAGE, 21, 22]])
    with torch.no_grad():
        plain = model(input_ids=text).logits
        reduction = tr.reduce(model, "random", STOPS)
        assert torch.equal(model(input_ids=text).logits, plain)
        assert reduction.report.applied == [False]
        with pytest.warns(tr.ReductionWarning):
            reduction.remove()
        inputs = dict(given.inputs)
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][1, -1] = IMAGE
        for context in (warnings.catch_warnings(), tr.reduce(model, "random", STOPS)):
            with pytest.raises(ValueError, match=r"(?i)image.*tokens"), context:
                model(**inputs)


def test_a_picture_that_nobody_asks_about():
    """The last token of the prompt is one of the picture: it asks, and text before it stays."""
    model, given = FAMILIES["llava"].model(), batch(FAMILIES["llava"], (1,))
    end = int(given.visual[0].nonzero()[-1]) + 1
    inputs = {
        k: x[:, :end] if x.shape[:2] == given.real.shape else x for k, x in given.inputs.items()
    }
    for strategy in ("pyramid_drop", "sparsevlm", "cdpruner", "dart"):
        with tr.reduce(model, strategy, tr.Single(2, 0.4)) as reduction, torch.no_grad():
            logits = model(**inputs).logits
            assert reduction.report.stops[0]["kept"] == [10]
        assert bool(logits.isfinite().all())
