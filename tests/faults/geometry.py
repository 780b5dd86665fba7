"""Faults of where tokens stand: tiles, rows, frames, separators."""

from dataclasses import replace

import torch

import tokenreduce as tr
from tests.faults import checks
from tests.faults.checks import law
from tests.faults.fault import Register, row
from tokenreduce.adapters import anyres, idefics3, internvl, llava_onevision
from tokenreduce.adapters.tiles import from_tiles
from tokenreduce.engine import prompt
from tokenreduce.testing import laws

FAULTS = Register()

QWEN = "test_rows_and_columns_are_those_of_the_models_own_positions"


def positions(family):
    return checks.tested("adapters.test_geometry_qwen_vl", QWEN, family, "left")


def by_positions(family):
    return f"tests/adapters/test_geometry_qwen_vl.py::{QWEN}[{family}-left]"


@FAULTS.noticed_by(checks.NEWLINES, "tests/adapters/test_geometry.py::test_the_grid_is_whole")
def a_newline_is_taken_for_a_part_of_the_picture(patch):
    """LLaVA-NeXT ends every row of its grid with one."""
    picture = anyres._picture

    def unmarked(packed):
        found = picture(packed)
        return replace(found, separator=torch.zeros_like(found.separator))

    patch.setattr(anyres, "_picture", unmarked)


@FAULTS.noticed_by(
    checks.CLIPS, "tests/adapters/test_geometry_onevision.py::test_painted_parts_of_videos"
)
def the_newline_behind_a_video_is_forgotten(patch):
    """LLaVA-OneVision: the geometry does not fit the tokens, and is given up."""
    patch.setattr(llava_onevision, "_newline", lambda frames: frames[:0])


@FAULTS.noticed_by(
    checks.tested(
        "adapters.test_geometry_idefics",
        "test_tiles_are_numbered_row_by_row_and_the_whole_is_0",
        "idefics3",
    ),
    "tests/adapters/test_geometry_idefics.py::test_tiles_are_numbered_row_by_row_and_the_whole_is_0",
)
def tiles_are_joined_column_by_column(patch):
    """Idefics3 gives them row by row."""
    image = idefics3._image

    def columns(tiles):
        *rows, last = tiles
        return image([*map(list, zip(*rows, strict=True)), last])

    patch.setattr(idefics3, "_image", columns)


@FAULTS.noticed_by(
    checks.THUMBNAIL,
    "tests/adapters/test_geometry_internvl.py::test_the_layout_of_the_tiles_is_found",
)
def the_first_tile_is_taken_for_the_thumbnail(patch):
    """InternVL's is the last one."""
    patch.setattr(internvl, "from_tiles", lambda tiles, thumbnail: from_tiles(tiles, 0))


def grids(patch, change):
    """Changes every picture of the Qwen-VL families."""
    made = tr.adapters["qwen2_vl"]._grids
    patch.setattr(
        tr.adapters["qwen2_vl"],
        "_grids",
        lambda self, *given: list(map(change, made(self, *given))),
    )


@FAULTS.noticed_by(positions("qwen2_vl"), by_positions("qwen2_vl"))
def rows_are_taken_for_columns(patch):
    grids(patch, lambda picture: replace(picture, row=picture.column, column=picture.row))


@FAULTS.noticed_by(positions("qwen2_5_vl-video"), by_positions("qwen2_5_vl-video"))
def the_frames_of_a_video_lie_below_each_other(patch):
    """One tall picture in place of one grid per frame."""

    def tall(picture):
        row = picture.row + picture.frame * (picture.row.max() + 1)
        return replace(picture, row=row, frame=torch.zeros_like(row))

    grids(patch, tall)


@FAULTS.noticed_by(positions("qwen2_vl-mixed"), by_positions("qwen2_vl-mixed"))
def images_come_before_videos_whatever_the_order(patch):
    """A prompt holds both, in any order."""
    assign = prompt.assign
    patch.setattr(
        prompt,
        "assign",
        lambda pictures, samples, used: assign(pictures, [sorted(runs) for runs in samples], used),
    )


@FAULTS.noticed_by(
    law(laws.order_ascends_and_budget_is_exact, "glm4v-video"), row("pyramid_drop", "glm4v-video")
)
def videos_are_looked_for_by_their_own_placeholder(patch):
    """GLM-4V puts the placeholders of images where the frames of a video stand."""
    from tokenreduce.adapter import Adapter

    patch.setattr(tr.adapters["glm4v"], "visual_ids", Adapter.visual_ids)


@FAULTS.noticed_by(
    checks.IMAGES,
    "tests/adapters/test_geometry_internvl.py::test_several_images_are_several_pictures",
)
def every_tile_is_a_picture_of_its_own(patch):
    """InternVL gives an image as a run of tiles."""
    patch.setattr(internvl, "by_run", lambda parts, visual, join: list(parts))
