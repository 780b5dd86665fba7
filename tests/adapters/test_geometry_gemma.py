"""Gemma 3 and PaliGemma: squares of patches, pooled or not; crops are pictures of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tokenreduce as tr
from tests.adapters.painting import check, local, texture
from tokenreduce.testing.families.gemma import SIDE, SQUARE, TOKENS
from tokenreduce.testing.models import END, IMAGE, START

SHAPES = [(32, 32), (40, 80), (90, 30), (200, 160)]


def _gemma3(**options):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    size = {"height": SIDE, "width": SIDE}
    return Gemma3ImageProcessorPil(size=size, resample=Image.Resampling.NEAREST, **options)


def _siglip():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    size = {"height": SQUARE, "width": SQUARE}
    return SiglipImageProcessorPil(size=size, resample=Image.Resampling.NEAREST)


def encode(model, pixels, ids):
    """(tokens, width) features of the pictures of one prompt, and their geometry."""
    ids = torch.tensor([ids])
    types = (ids == IMAGE).long() if model.config.model_type == "gemma3" else torch.zeros_like(ids)
    with torch.no_grad():
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output
        with tr.reduce(model, "stride", tr.Single(0, 0.5)) as reduction:
            model(input_ids=ids, pixel_values=pixels, token_type_ids=types)
    return features.flatten(0, 1), reduction.pictures[0]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("family", ["gemma3", "paligemma", "paligemma2"])
def test_painted_parts_change_the_tokens_that_cover_them(family, shape):
    model, side = local(family), SIDE if family == "gemma3" else SQUARE
    processor = _gemma3() if family == "gemma3" else _siglip()

    def one(array):
        pixels = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
        n = TOKENS if family == "gemma3" else (SQUARE // 4) ** 2
        ids = [*[IMAGE] * n, 1, 12] if family != "gemma3" else [1, START, *[IMAGE] * n, END, 12]
        features, (picture,) = encode(model, pixels, ids)
        return features, picture

    check(one, texture(*shape), least=-(-2 * max(shape) // side))


def test_pan_and_scan_crops_are_pictures_of_their_own():
    """Each crop covers a third of the image; which third, the model is not told."""
    processor = _gemma3(
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    array = np.full((32, 96, 3), 60, dtype=np.uint8)
    model = local("gemma3")

    def features(image):
        found = processor(Image.fromarray(image), return_tensors="pt")
        assert found["num_crops"].item() == 3
        ids = [1]
        for _ in range(4):
            ids += [START, *[IMAGE] * TOKENS, END, 12]
        return encode(model, found["pixel_values"], ids)

    before, pictures = features(array)
    assert [len(picture) for picture in pictures] == [TOKENS] * 4
    array[:, 64:] = 250  # the last third
    after, _ = features(array)
    changed = (after - before).abs().amax(dim=1).view(4, TOKENS) > 1e-6
    assert changed.any(dim=1).tolist() == [True, False, False, True]
    assert changed[3].all()
    assert torch.equal(changed[0], pictures[0].box[:, 2] > 2 / 3 + 1e-6)
