"""Pictures of what stays: the right pixels are dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokenreduce.data.images import in_rgb
from tokenreduce.viz import Scene, Stage, heat, overlay, stack, strip, write_panels
from tokenreduce.viz.overlay import DARK, TINT, ranks, tint


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


# -- merged tokens, and scores ---------------------------------------------------------------------


def test_groups_have_a_colour_and_an_outline() -> None:
    grey = Image.new("RGB", (640, 320), (128, 128, 128))
    # two tokens of one group, one alone, one dropped; the group stands at token 1
    shown = np.asarray(overlay(grey, grid(1, 4), [1, 2], [0, 0, 1, -1])).astype(int)
    middle = [tuple(shown[160, x]) for x in (80, 240, 400, 560)]
    assert middle[0] == middle[1]
    assert middle[0] == tuple(round(128 * (1 - TINT) + c * TINT) for c in tint(0))
    assert middle[2] == (128,) * 3
    assert max(middle[3]) < 128 * (DARK + 0.05)
    assert tuple(shown[160, 160]) == middle[0]  # no line within a group
    assert tuple(shown[160, 320]) == (255,) * 3


def test_neighbouring_groups_have_colours_of_their_own() -> None:
    colours = np.array([tint(i) for i in range(24)])
    apart = np.abs(colours[1:] - colours[:-1]).max(axis=1)
    assert apart.min() > 90


def test_ranks_share_places_and_leave_out_what_is_missing() -> None:
    found = ranks([5.0, -1.0, float("nan"), 5.0, 9.0, float("-inf")])
    np.testing.assert_allclose(found, [0.5, 0, np.nan, 0.5, 1, np.nan])
    np.testing.assert_array_equal(ranks([float("nan")]), [np.nan])
    np.testing.assert_array_equal(ranks([3.0]), [1.0])


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_heat_map_lies_on_the_picture_that_the_model_sees(mode: str) -> None:
    """A transparent picture is white, and 16 bits are scaled."""
    image = Image.new(mode, (8, 8), {"RGBA": (0, 0, 0, 0), "I;16": 30000}[mode])
    assert heat(image, grid(1, 1), [1.0]) == heat(in_rgb(image), grid(1, 1), [1.0])


def test_the_best_score_is_brightest() -> None:
    shown = light(heat(Image.new("RGB", (80, 40), "black"), grid(1, 4), [0.1, 7, 0.2, np.nan]))
    low, high, middle, none = (shown[20, x] for x in (10, 30, 50, 70))
    assert low < middle < high
    assert none == 0


def test_scores_stand_below_their_stage(white: Image.Image) -> None:
    stages = [Stage(range(2), "all 2"), Stage([1], "from layer 2: 1", None, [0.0, 1.0], 2)]
    plain, heated = (strip(white, grid(1, 2), stages, on) for on in (False, True))
    assert heated.width == plain.width
    assert heated.height - 8 == 2 * (plain.height - 8)
    below = np.asarray(heated)[plain.height + 60]
    assert (below[: 288 + 8] == 255).all()  # the whole picture was not chosen by a score
    assert (below[288 + 40 : 288 + 100] < 255).any()


def scene() -> Scene:
    parts = (
        Stage(range(8), "all 8"),
        Stage([0, 6], "from layer 2: 2", None, list(range(8)), 2),
        Stage([6], "from layer 4: 1", None, None, 4),
    )
    return Scene("p", Image.new("RGB", (80, 40), "white"), grid(2, 4), np.zeros(8, int), parts)


def test_panels_are_files_of_the_size_asked_for(tmp_path: Path) -> None:
    files = write_panels([scene()], tmp_path / "panels", 256, heated=True)
    assert [path.name for path in files] == ["0.png", "1.png", "1_scores.png", "2.png"]
    for path in files:
        with Image.open(path) as panel:
            assert panel.size == (256, 128)
    shown = light(Image.open(files[1]))
    assert shown[32, 32] == 1
    assert shown[32, 96] == pytest.approx(DARK, abs=0.01)


def test_panels_of_several_pictures_have_folders(tmp_path: Path) -> None:
    files = write_panels([scene(), scene()], tmp_path, 64)
    assert {path.parent.name for path in files} == {"1", "2"}
    assert len(files) == len(set(files)) == 6


@pytest.mark.parametrize("size", [0, -3, 2.5, "big", True, 1 << 20])
def test_panels_need_a_size(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match="no number of pixels"):
        write_panels([scene()], tmp_path, size)
    assert not list(tmp_path.iterdir())
