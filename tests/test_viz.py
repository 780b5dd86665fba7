"""Pictures of what stays: the right pixels are dark."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tokenreduce.viz import Stage, overlay, stack, strip
from tokenreduce.viz.overlay import DARK


def grid(rows: int, columns: int) -> np.ndarray:
    """(n, 4) boxes of a grid over the whole picture."""
    at = [(r, c) for r in range(rows) for c in range(columns)]
    return np.array([[c / columns, r / rows, (c + 1) / columns, (r + 1) / rows] for r, c in at])


@pytest.fixture
def white() -> Image.Image:
    return Image.new("RGB", (80, 40), "white")


def light(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[..., 0] / 255


def test_kept_patches_are_bright_and_the_others_dark(white: Image.Image) -> None:
    shown = light(overlay(white, grid(2, 4), [0, 6]))
    assert shown.shape == (40, 80)
    expected = np.full((2, 4), DARK)
    expected[0, 0] = expected[1, 2] = 1
    np.testing.assert_allclose(shown, expected.repeat(20, 0).repeat(20, 1), atol=0.01)


def test_keeping_everything_is_the_picture() -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    shown = overlay(Image.fromarray(values), grid(4, 8), range(32))
    assert (np.asarray(shown) == values).all()


def test_uneven_grids_leave_no_gap() -> None:
    """Patches that are no whole number of pixels still tile the picture."""
    shown = light(overlay(Image.new("RGB", (100, 101), "white"), grid(7, 3), range(21)))
    assert (shown == 1).all()


def test_two_views_of_a_pixel_are_averaged(white: Image.Image) -> None:
    boxes = np.concatenate([grid(1, 1), grid(1, 2)])
    shown = light(overlay(white, boxes, [0, 1]))
    assert shown[0, 0] == 1
    assert shown[0, -1] == pytest.approx((1 + DARK) / 2, abs=0.01)


def test_what_no_token_sees_is_grey() -> None:
    black = Image.new("RGB", (80, 40))
    shown = light(overlay(black, np.array([[0.25, 0.0, 0.75, 1.0]]), [0]))
    assert shown[0, 40] == 0
    assert shown[0, 0] == shown[0, -1] == pytest.approx(0.41, abs=0.01)


@pytest.mark.parametrize(
    "box", [[0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 1.25, 0.5], [-0.5, 0.0, 0.0, 1.0]]
)
def test_tokens_without_a_place_draw_nothing(white: Image.Image, box: list[float]) -> None:
    with_separator = np.concatenate([grid(2, 4), [box]])
    np.testing.assert_array_equal(
        light(overlay(white, with_separator, [0])), light(overlay(white, grid(2, 4), [0]))
    )


def test_a_strip_has_a_panel_for_every_stage(white: Image.Image) -> None:
    stages = [Stage(range(8), "all 8"), Stage([1], "from layer 2: 1")]
    one, two = strip(white, grid(2, 4), stages[:1]), strip(white, grid(2, 4), stages)
    assert two.width - one.width == one.width - 8
    assert two.height == one.height
    many = strip(white, grid(2, 4), stages * 6)
    assert many.height - 8 == 2 * (two.height - 8)


def test_a_strip_shows_the_stages_in_order(white: Image.Image) -> None:
    sheet = light(strip(white, grid(1, 1), [Stage([0], "kept"), Stage([], "dropped")]))
    assert sheet[80, 150] == 1
    assert sheet[80, 440] == pytest.approx(DARK, abs=0.01)


def test_strips_are_stacked(white: Image.Image) -> None:
    sheet = strip(white, grid(1, 1), [Stage([0], "kept")])
    assert stack([sheet, sheet]).size == (sheet.width, 2 * sheet.height)
