"""Mistral 3 and LLaVA with a Pixtral tower from their folders."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.user import ask, check, image, load

SIZES = ((30, 50), (40, 25), (20, 20))


@pytest.fixture(scope="module", params=["mistral3", "llava-pixtral"])
def loaded(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


def grids(processor, *sizes):
    """Rows and columns of tokens of pictures, as the image processor scales them."""
    found = []
    side = processor.image_processor.size["longest_edge"]
    unit = processor.patch_size * processor.spatial_merge_size
    for height, width in sizes:
        ratio = max(1.0, max(height, width) / side)
        found.append((1, -(-int(height / ratio) // unit), -(-int(width / ratio) // unit)))
    return found


def test_images(loaded):
    processor, model = loaded
    parts = [image(*size, seed=i) for i, size in enumerate(SIZES)]
    for n in (1, 2, 3):
        check(model, ask(processor, parts[:n]), [grids(processor, *SIZES[:n])])
    rows_differ = {rows for _, rows, _ in grids(processor, *SIZES)}
    assert len(rows_differ) > 1


def test_a_batch_of_prompts(loaded):
    processor, model = loaded
    one, two, three = (image(*size, seed=i) for i, size in enumerate(SIZES))
    expected = grids(processor, *SIZES)
    check(
        model,
        ask(processor, [one], [], [two, three]),
        [expected[:1], [], expected[1:]],
    )


def test_beams(loaded):
    processor, model = loaded
    parts = [image(*size, seed=i) for i, size in enumerate(SIZES[:2])]
    reduction = check(model, ask(processor, parts), [grids(processor, *SIZES[:2])] * 3, num_beams=3)
    assert all(torch.equal(x, reduction.kept[4][0]) for x in reduction.kept[4])
