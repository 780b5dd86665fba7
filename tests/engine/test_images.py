"""Which positions are visual, for any number of images, sizes and ways of handing them over."""

from __future__ import annotations

import inspect

import pytest
import torch

import tokenreduce as tr
from tests.pairwise import pairwise
from tokenreduce.engine.call import ENCODED
from tokenreduce.testing.batches import batch
from tokenreduce.testing.models import FAMILIES, IMAGE
from tokenreduce.testing.oracle import filled, left, masked

LLAVA, NEXT = FAMILIES["llava"], FAMILIES["llava_next"]


@pytest.mark.parametrize(
    ("family", "images", "side"),
    pairwise([LLAVA, NEXT], [(1,), (3,), (0, 1, 2), (2, 0, 0, 1)], ["left", "right"]),
    ids=str,
)
def test_rows_with_any_number_of_images(family, images, side, schedule):
    model, prompt = family.model(), batch(family, images, side=side)
    with torch.no_grad():
        with tr.reduce(model, "pyramid_drop", schedule, positions="keep") as reduction:
            ours = model(**prompt.inputs).logits
        with masked(model, prompt.visual, reduction.kept):
            theirs = model(**prompt.inputs).logits
    report = reduction.report
    assert report.visual_tokens == prompt.counts
    assert report.applied == [n > 0 for n in images]
    assert [len(row) for row in reduction.pictures] == list(images)
    for layer, keep in ((2, 0.5), (4, 0.2)):
        found = reduction.kept[layer]
        assert [len(x) for x in found] == [round(n * keep) for n in prompt.counts]
        assert all((x.diff() > 0).all() for x in found)
    theirs, seen = filled(theirs, left(prompt.visual, prompt.real, reduction.kept))
    there = seen & prompt.real
    torch.testing.assert_close(ours[there], theirs[there], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 3])
def test_rows_of_one_length_with_unequal_images(attention, layer):
    """Without padding there is no mask to gather; the filler of shorter rows must still hide."""
    model, prompt = LLAVA.model(attention), batch(LLAVA, (1, 2))
    ids = prompt.inputs["input_ids"]
    gap = ~prompt.real
    ids[gap] = torch.arange(10, 10 + int(gap.sum()))
    prompt.real[:] = True
    prompt.inputs.pop("attention_mask")
    with torch.no_grad():
        with tr.reduce(model, "random", tr.Single(layer, 0.3)) as reduction:
            ours = model(**prompt.inputs).logits
            said = model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
        with masked(model, prompt.visual, reduction.kept):
            theirs = model(**prompt.inputs).logits
            wanted = model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    text = ~prompt.visual
    torch.testing.assert_close(ours[text], theirs[text], atol=3e-5, rtol=1e-5)
    assert torch.equal(said, wanted)


def takes_encoded(model):
    """Whether this release's models take pictures that were encoded beforehand (since 5.18)."""
    return ENCODED in inspect.signature(model.model.forward).parameters


@pytest.mark.parametrize("family", [LLAVA, NEXT], ids=str)
def test_ways_of_handing_images_over_agree(family, schedule):
    """Pixels by name or by position, encoded beforehand, and generate(): the same tokens stay."""
    model, prompt = family.model(), batch(family, (1, 2))
    inputs = dict(prompt.inputs)
    ids, pixels, mask = (inputs.pop(n) for n in ("input_ids", "pixel_values", "attention_mask"))
    found = []
    with torch.no_grad(), tr.reduce(model, "pyramid_drop", schedule) as reduction:
        model(**prompt.inputs)
        found.append((reduction.kept, reduction.report, reduction.pictures))
        names = ("image_sizes",) if family is NEXT else ()
        model(ids, pixels, *(inputs[n] for n in names), attention_mask=mask)
        found.append((reduction.kept, reduction.report, reduction.pictures))
        if takes_encoded(model):
            known = model.model.get_image_features(pixel_values=pixels, return_dict=True, **inputs)
            model(input_ids=ids, attention_mask=mask, mm_encoder_outputs={"image": known})
            found.append((reduction.kept, reduction.report, reduction.pictures))
        model.generate(**prompt.inputs, max_new_tokens=2, do_sample=False)
        found.append((reduction.kept, reduction.report, reduction.pictures))
        model.model(**prompt.inputs)  # without the head
        found.append((reduction.kept, reduction.report, reduction.pictures))
    for kept, report, places in found:
        assert report == found[0][1]
        for layer in (2, 4):
            for a, b in zip(kept[layer], found[0][0][layer], strict=True):
                assert torch.equal(a, b)
        for row, first in zip(places, found[0][2], strict=True):
            assert [len(p) for p in row] == [len(p) for p in first]
            assert all(torch.equal(p.box, q.box) for p, q in zip(row, first, strict=True))


def test_a_text_only_batch_passes_untouched(llava, schedule):
    prompt = batch(LLAVA, (0, 0))
    with torch.no_grad():
        plain = llava(**prompt.inputs).logits
        said = llava.generate(**prompt.inputs, max_new_tokens=5, do_sample=False)
        reduction = tr.reduce(llava, "pyramid_drop", schedule)
        ours = llava(**prompt.inputs).logits
        again = llava.generate(**prompt.inputs, max_new_tokens=5, do_sample=False)
        report = reduction.report
        assert report.visual_tokens == [0, 0]
        assert report.applied == [False, False]
        assert report.flops == report.flops_full
        assert reduction.kept == {}
        with pytest.warns(tr.ReductionWarning, match="without having reduced anything"):
            reduction.remove()
    assert torch.equal(plain, ours)
    assert torch.equal(said, again)


def test_a_placeholder_id_in_a_text_prompt_is_text(llava, schedule):
    """Without features to merge, transformers embeds the id like a word; so do we."""
    prompt = batch(LLAVA, (0,))
    ids = prompt.inputs["input_ids"].clone()
    ids[0, 3:9] = IMAGE
    with torch.no_grad():
        plain = llava(input_ids=ids).logits
        reduction = tr.reduce(llava, "random", schedule)
        assert torch.equal(llava(input_ids=ids).logits, plain)
        with pytest.warns(tr.ReductionWarning):
            reduction.remove()


def test_images_can_be_told_apart(llava_next, schedule):
    """Several images of different shapes in one prompt: places count images, and lines go on."""
    seen = []

    class Look(tr.Stride):
        def plan(self, tokens, budget):
            seen.append(tokens)
            return super().plan(tokens, budget)

    prompt = batch(NEXT, (1, 3))
    with torch.no_grad(), tr.reduce(llava_next, Look(), tr.Single(0, 0.5)) as reduction:
        llava_next(**prompt.inputs)
    tokens, places = seen[0], reduction.pictures
    for row, pictures in enumerate(places):
        valid = tokens.valid[row]
        assert tokens.places.image[row, valid].bincount().tolist() == [len(p) for p in pictures]
        for name in ("tile", "row", "column", "separator"):
            mine = torch.cat([getattr(p, name) for p in pictures])
            assert torch.equal(getattr(tokens.places, name)[row, valid], mine)
        line = tokens.places.line[row, valid]
        assert line[0] == 0
        assert set(line.diff().tolist()) == {0, 1}
        separators = torch.cat([p.separator for p in pictures])
        assert (line.diff()[separators[:-1]] == 1).all()


def test_a_pixtral_tower_has_a_grid_per_image(schedule):
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PixtralVisionConfig,
    )

    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, 11, *[IMAGE] * 15, 12, *[IMAGE] * 8, 13, 14]])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(2, 3, 12, 20),
        "image_sizes": torch.tensor([[12, 20], [8, 16]]),
    }
    with torch.no_grad(), tr.reduce(model, "stride", schedule) as reduction:
        model(**inputs)
        first, second = reduction.pictures[0]
        model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert (first.row.max(), first.column.max()) == (2, 4)
    assert (second.row.max(), second.column.max()) == (1, 3)
    assert reduction.report.visual_tokens == [23]
    assert [len(p) for p in reduction.pictures[0]] == [15, 8]


def test_features_keep_the_geometry_of_their_own_pictures(llava_next, schedule):
    """Two prompts encoded first and run afterwards, in the other order."""
    if not takes_encoded(llava_next):
        pytest.skip("the models of this transformers take no encoded pictures (up to 5.17)")
    prompts = [batch(FAMILIES["llava_next"], (1,), seed=seed) for seed in (0, 1)]
    sizes = [[[12, 22]], [[22, 12]]]
    for prompt, size in zip(prompts, sizes, strict=True):
        prompt.inputs["image_sizes"] = torch.tensor(size)
    with torch.no_grad(), tr.reduce(llava_next, "random", schedule) as reduction:
        features = []
        for prompt in prompts:
            pixels, size = prompt.inputs["pixel_values"], prompt.inputs["image_sizes"]
            features.append(llava_next.model.get_image_features(pixels, size, return_dict=True))
        for prompt, output in reversed(list(zip(prompts, features, strict=True))):
            ids = prompt.inputs["input_ids"]
            text = ids[0][ids[0] != IMAGE]
            run = torch.full((len(output.pooler_output[0]),), IMAGE)
            ids = torch.cat([text[:2], run, text[2:]])[None]
            llava_next(input_ids=ids, mm_encoder_outputs={"image": output})
            (picture,) = reduction.pictures[0]
            high = picture.tile == 1
            tall = int(prompt.inputs["image_sizes"][0, 0]) > int(prompt.inputs["image_sizes"][0, 1])
            body = high & ~picture.separator
            assert (picture.row[body].max() > picture.column[body].max()) == tall
