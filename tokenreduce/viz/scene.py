"""What a reduction did to each picture of a prompt, on the host, ready to be drawn.

Shapes: n visual tokens of one sample at layer 0, m those at a stop, k kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tokenreduce.data.images import in_rgb
from tokenreduce.errors import BadOption
from tokenreduce.geometry import Picture
from tokenreduce.tokens import Plan
from tokenreduce.viz.overlay import Boxes, Stage
from tokenreduce.viz.quantities import counted

if TYPE_CHECKING:
    from tokenreduce.reduction import Reduction

Shown = Image.Image | Sequence[Image.Image]
"""An image, or the frames of a video."""
Integers = npt.NDArray[np.int64]
FRAME = 320  # pixels of a frame's longer side on a sheet
GAP = 4  # pixels between frames


@dataclass(frozen=True)
class Scene:
    """One picture, where its visual tokens lie in it, and what is left of them at every stage.

    Attributes:
        name: of the picture: its file, or its number.
        image: the original; of a video, a sheet of its frames.
        boxes: (n, 4) left, top, right, bottom of every token, as fractions of `image`.
        tile: (n,) which view of the picture a token belongs to: 0 the whole, above 0 a
            high-resolution part of it.
        stages: the first one is everything.
        frames: of a video; 1 for an image.
    """

    name: str
    image: Image.Image
    boxes: Boxes
    tile: Integers
    stages: tuple[Stage, ...]
    frames: int = 1

    def views(self) -> list[tuple[str, Integers]]:
        """The tokens that are drawn together, by name: overview and details see the same pixels."""
        drawn = (self.boxes[:, 2] > self.boxes[:, 0]) & (self.boxes[:, 3] > self.boxes[:, 1])
        parts = {"overview": drawn & (self.tile == 0), "details": drawn & (self.tile > 0)}
        found = [(name, np.flatnonzero(mask)) for name, mask in parts.items() if mask.any()]
        return found if len(found) > 1 else [("", np.arange(len(self.boxes)))]


def scenes(
    reduction: Reduction,
    pictures: Sequence[Shown],
    *,
    names: Sequence[str] = (),
    processor: Any = None,
    sample: int = 0,
) -> list[Scene]:
    """The pictures of the latest prompt under `reduction`, and what was left of them where.

    Args:
        reduction: that has seen a prompt.
        pictures: the originals of the sample, in order: an image, or the frames of a video.
        names: of the pictures; they are numbered where not given.
        processor: the checkpoint's image processor, which may have cut away or padded the images.
        sample: which one of the batch.

    Raises:
        ValueError: another number of pictures than the sample has.
    """
    found = reduction.pictures[sample]
    if len(found) != len(pictures):
        raise BadOption(
            f"the sample has {counted(len(found), 'picture')}, but {len(pictures)} were given to "
            "draw: give every image or video of its prompt, in order"
        )
    whole = _whole(found, reduction, sample)
    drawn, start = [], 0
    for i, (picture, shown) in enumerate(zip(found, pictures, strict=True)):
        name = names[i] if i < len(names) else f"picture {i + 1}"
        part = slice(start, start + len(picture))
        start = part.stop
        if isinstance(shown, Image.Image):
            image, frames = shown, 1
            if processor is not None and reduction.adapter is not None:
                view = reduction.adapter.view(processor, shown.width, shown.height)
                picture = picture.inside(view)
            boxes = picture.box.double().numpy()
        else:
            frames = len(shown)
            image, boxes = filmstrip(shown, picture)
        stages = tuple(_cut(stage, part) for stage in whole)
        drawn.append(Scene(name, image, boxes, picture.tile.numpy(), stages, frames))
    return drawn


def filmstrip(frames: Sequence[Image.Image], picture: Picture) -> tuple[Image.Image, Boxes]:
    """The frames of a video on one sheet, and the boxes (n, 4) of its tokens on it.

    Where a token stands for several frames (Qwen2-VL's for two), the first of them is shown.

    Raises:
        ValueError: a video without frames, or with fewer than its tokens know of.
    """
    number = int(picture.frame.max()) + 1 if len(picture) else 1
    if len(frames) < number:
        raise BadOption(f"tokens of {number} frames, but {len(frames)} were given to draw")
    shown = [in_rgb(frames[i * len(frames) // number]) for i in range(number)]
    scale = min(1.0, FRAME / max(shown[0].size))
    width, height = (max(1, round(side * scale)) for side in shown[0].size)
    columns = min(number, max(1, math.ceil(math.sqrt(number * 1.6 * height / width))))
    rows = math.ceil(number / columns)
    size = (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, (128, 128, 128))
    for i, one in enumerate(shown):
        at = (i % columns * (width + GAP), i // columns * (height + GAP))
        sheet.paste(one.resize((width, height), Image.Resampling.LANCZOS), at)
    frame = picture.frame.numpy()
    corner: Integers = np.stack(
        [frame % columns * (width + GAP), frame // columns * (height + GAP)], axis=1
    )
    boxes = picture.box.double().numpy() * [width, height, width, height] + np.tile(corner, 2)
    return sheet, np.where(
        (picture.box[:, 2:] > picture.box[:, :2]).all(dim=1).numpy()[:, None],
        boxes / (size * 2),
        0.0,
    )


def _whole(found: Sequence[Picture], reduction: Reduction, sample: int) -> list[Stage]:
    """The stages of a whole sample, its pictures one after the other."""
    n = sum(map(len, found))
    separator = np.concatenate([p.separator.numpy() for p in found]) if found else np.zeros(0, bool)
    here, origins = np.arange(n), np.arange(n)
    stages = [Stage(range(n), "")]
    tower = _in_tower(found, reduction)
    if tower is not None:
        stages.append(tower)
    for layer, rows in reduction.kept.items():
        kept = rows[sample].cpu().numpy()
        plan = reduction.plans.get(layer)
        step = None if plan is None else _moved(plan, sample, origins, kept)
        score = None
        if step is None:  # a prompt in chunks, whose plans are about its last part
            step = np.full(len(origins), -1)
            step[np.searchsorted(origins, kept)] = np.arange(len(kept))
        elif plan is not None and plan.score is not None:
            values = plan.score[sample].float().cpu().numpy()[: len(origins)]
            score = np.where(separator, np.nan, np.append(values, np.nan)[here])
        here = np.append(step, -1)[here]  # a token that is gone, at -1, stays so
        merged = len(kept) and np.bincount(here[here >= 0], minlength=1).max() > 1
        origins = kept
        group = here.tolist() if merged else None
        ranked = None if score is None else score.tolist()
        stages.append(Stage(kept.tolist(), "", group, ranked, layer))
    return stages


def _in_tower(found: Sequence[Picture], reduction: Reduction) -> Stage | None:
    """What the vision tower has merged, where the language model still gets every token.

    None where it has not, or where it is not known which patches of its latest pass tokens are of.
    """
    inside = reduction.tower
    patches = [p.patches[:, 0] for p in found if p.patches is not None]
    if inside is None or not inside.ran or 0 in reduction.kept or len(patches) < len(found):
        return None
    group = torch.arange(inside.group.shape[1]).expand(inside.group.shape)
    for layer, plan in sorted(inside.plans.items()):
        if layer <= inside.tower.feature and plan.group is not None:
            group = plan.group.cpu().gather(1, group)
    group = group[:, inside.tower.classes :]
    rows = torch.arange(len(group))[:, None]
    flat = (group + rows * (int(group.max()) + 1)).flatten().numpy()
    patch = torch.cat(patches).numpy()
    seen = patch[patch >= 0]
    if len(np.unique(seen)) < len(seen) or seen.max(initial=-1) >= len(flat):
        return None  # several passes
    number = np.where(patch >= 0, flat[patch], flat.max() + 1 + np.arange(len(patch)))
    return Stage(range(len(patch)), "vision tower", number.tolist())


def _moved(plan: Plan, sample: int, origins: Integers, kept: Integers) -> Integers | None:
    """(m,) the kept token that each token of a stop went to, -1 where to none.

    None where the plan is not about these tokens.
    """
    keep = plan.keep[sample].cpu().numpy()
    columns = np.arange(len(keep))
    if plan.valid is not None:
        columns = np.flatnonzero(plan.valid[sample].cpu().numpy())
    m, at = len(origins), keep[columns]
    if len(at) != len(kept) or (at >= m).any() or (origins[at] != kept).any():
        return None
    into = np.full(m, -1)
    into[at] = np.arange(len(at))
    number = np.full(len(keep) + 1, -1)  # of a column among the valid ones; the last for none
    number[columns] = np.arange(len(columns))
    if plan.group is not None:
        into = number[plan.group[sample].cpu().numpy()[:m]]
    elif plan.mix is not None:
        share = plan.mix[sample].float().abs().cpu().numpy()[columns][:, :m]
        if len(share):
            most = np.where(share.max(axis=0) > 0, share.argmax(axis=0), -1)
            # what is kept contains itself first of all
            into = np.where((into >= 0) & (share[into, np.arange(m)] > 0), into, most)
    return into


def _cut(stage: Stage, part: slice) -> Stage:
    """The part of a sample's stage that is about one of its pictures."""
    size = part.stop - part.start
    kept = [i - part.start for i in stage.kept if part.start <= i < part.stop]
    caption = f"all {size}"
    if stage.group is not None and stage.layer is None:
        caption = f"{stage.caption}: {len(set(stage.group[part]))} groups"
    if stage.layer is not None:
        caption = f"from layer {stage.layer}: {len(kept)}" + (", merged" if stage.group else "")
    return replace(
        stage,
        kept=kept,
        caption=caption,
        group=None if stage.group is None else stage.group[part],
        score=None if stage.score is None else stage.score[part],
    )
